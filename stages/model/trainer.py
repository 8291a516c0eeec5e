"""TRL's trainer for rows packed by prefix_sharing: the loss of labelled tokens only, noted row by row."""

import math
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from peft import LoraConfig
from transformers import PrinterCallback, ProgressCallback
from trl import SFTTrainer

from stages.core.cli import InputError
from stages.model import prefix_sharing
from stages.model.prefix_sharing import IGNORED
from stages.model.row_losses import RowLosses


class Trainer(SFTTrainer):  # type: ignore[misc]
    """Trains a float32 LoRA. `train` and `valid`: tokenised rows with a number `row`."""

    def __init__(self, model: Any, tokenizer: Any, args: Any, lora: LoraConfig, train: Any, valid: Any) -> None:
        super().__init__(
            model=model,
            args=args,
            data_collator=prefix_sharing.collate,
            train_dataset=train,
            eval_dataset=valid,
            processing_class=tokenizer,
            peft_config=lora,
        )
        if len(self.train_dataset) != len(train):
            raise InputError(f"TRL kept {len(self.train_dataset)} of {len(train)} training rows")
        self.row_losses = RowLosses(len(train), math.ceil(args.num_train_epochs), self.accelerator)
        for unwanted in (PrinterCallback, ProgressCallback):
            self.remove_callback(unwanted)
        self.add_callback(Bar)
        # TRL casts the adapters of a quantised model to bfloat16, where AdamW loses small updates (trl#4901).
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """On a CPU, all logits at once, but of labelled tokens only: TRL's head needs Triton to be fast."""
        note = self.note(inputs.pop("rows", None))
        if self.args.device.type != "cpu":
            return self.fused_loss(model, inputs, num_items_in_batch, note)
        # The items are those of all processes, and gradients are averaged over these.
        scale = 1 if num_items_in_batch is None else self.accelerator.num_processes
        return labelled_loss(model, inputs, num_items_in_batch, note) * scale

    def fused_loss(self, model: Any, inputs: dict[str, Any], items: Any, note: Any) -> Any:
        """TRL's; what its head computed by token is caught on the way."""
        outputs: list[Any] = []
        hook = self.model.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            loss = super().compute_loss(model, inputs, num_items_in_batch=items)
        finally:
            hook.remove()
        note(-outputs[0].log_probs[outputs[0].label_mask])
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Raises InputError for a loss that is no number: nothing comes of such a training."""
        loss = logs.get("loss", logs.get("eval_loss", 0.0))
        if not math.isfinite(loss):
            untrained = self.state.global_step == 1 and "loss" in logs
            remedy = "another compute.device or base model" if untrained else "a lower train.learning_rate"
            at = f"step {self.state.global_step} of {self.state.max_steps}"
            raise InputError(f"{at}: the loss is {loss}; set {remedy} in params.yaml")
        super().log(logs, start_time)

    def note(self, rows: Any) -> Callable[[Any], None]:
        """What to do with the losses of a batch's labelled tokens."""
        if rows is None or not self.model.training:
            return lambda losses: None
        return lambda losses: self.row_losses.note(int(self.state.epoch or 0), rows, losses)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        done, rows = self.state.global_step, len(self.train_dataset)
        at_once, micro = self.args.gradient_accumulation_steps, self.args.per_device_train_batch_size
        steps = math.ceil(rows / (micro * at_once * self.accelerator.num_processes))
        numbers = count(done % steps * at_once)
        batches = (self.unrepeated(batch, next(numbers), rows) for batch in epoch_iterator)
        return super().get_batch_samples(batches, num_batches, device)

    def evaluate(self, *given: Any, **named: Any) -> Any:
        self.evaluated = count()
        return super().evaluate(*given, **named)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *given: Any, **named: Any) -> Any:
        inputs = self.unrepeated(inputs, next(self.evaluated), len(self.eval_dataset))
        return super().prediction_step(model, inputs, *given, **named)

    def unrepeated(self, batch: dict[str, Any], number: int, total: int) -> dict[str, Any]:
        """The process's batch of that number, without what accelerate repeats so that all have as many batches."""
        size, world = self.args.per_device_train_batch_size, self.accelerator.num_processes
        left = max(total - (number * world + self.accelerator.process_index) * size, 0)
        return prefix_sharing.first_rows(batch, left) if world > 1 and left < size else batch


class Bar(ProgressCallback):  # type: ignore[misc]
    """transformers prints each log as a line of its own; here the loss stands beside the bar."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=logs["loss"])


def labelled_loss(model: Any, inputs: dict[str, Any], items: Any, note: Any = lambda losses: None) -> Any:
    """Summed cross-entropy of the labelled tokens over `items`, their number in the whole batch (None: in this one).

    `note` is called with that of each.
    """
    labels = inputs["labels"][0, 1:]
    places = (labels != IGNORED).nonzero()[:, 0]
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    logits = model(**rest, use_cache=False, logits_to_keep=places).logits.squeeze(0)
    scores = torch.log_softmax(logits.float(), dim=-1)
    note(torch.nn.functional.nll_loss(scores.detach(), labels[places], reduction="none"))
    total = torch.nn.functional.nll_loss(scores, labels[places], reduction="sum")
    return total / (max(len(places), 1) if items is None else items)
