"""Merge the adapter into the base: one plain folder, which is measured here and which any engine serves.

In: base model, adapter. Out: models/merged with safetensors, config, tokenizer, greedy generation config,
made_from.json, and a chat template that brings the system prompt of training along: a request without a system
message gets, token for token, the prompt that the model was trained on. The adapter has learnt to correct the quantised
weights, so it is merged into those, dequantised, and not into the original ones; `merge.scale` is the share of it. One
matrix at a time: the device holds the 4-bit base as in training, the host one file of the result.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from stages.answers import generate
from stages.core import cli, params, strict_json
from stages.data import writing
from stages.model import chat, loading, quantised

SHARD = 5 * 10**9  # most bytes of one file, unless a single matrix is larger; what the host holds at once

# chat.with_prefix, in Jinja. The text may stand there already: the client sent it, or it was rendered twice.
# The empty expression at the end keeps Jinja from eating a newline that the template may begin with.
PROMPT = """{%%- set told = %s %%}
{%%- if not messages or messages[0]['role'] != 'system' %%}
{%%- set messages = [{'role': 'system', 'content': told}] + messages %%}
{%%- elif not messages[0]['content'].startswith(told) %%}
{%%- set both = told + '\\n' + messages[0]['content'] %%}
{%%- set messages = [{'role': 'system', 'content': both}] + messages[1:] %%}
{%%- endif %%}
{{- '' }}"""
PROBES: list[list[chat.Turn]] = [
    [{"role": "user", "content": "probe"}],
    [{"role": "system", "content": "own"}, {"role": "user", "content": "probe"}],
    [{"role": role, "content": "probe"} for role in ("user", "assistant", "user")],
]


@dataclass(frozen=True)
class Params:
    scale: params.Positive
    dtype: Literal["float32", "bfloat16", "float16"]


def with_prompt(template: str, prefix: list[chat.Turn]) -> str:
    """The chat template with `prefix`, one system turn, built in. Raises InputError for any other prefix."""
    if [turn["role"] for turn in prefix] != ["system"]:
        raise cli.InputError("made_from.json: only a prefix of one system turn can become part of a chat template")
    return PROMPT % json.dumps(prefix[0]["content"], ensure_ascii=False) + template


def check_template(tokenizer: Any, exported: Any, prefix: list[chat.Turn]) -> None:
    """A request must become the tokens that training would have made of it. Raises InputError when it does not."""
    for probe in [*PROBES, [*prefix, PROBES[0][0]]]:
        if chat.prompt_ids(exported, probe) != chat.prompt_ids(tokenizer, chat.with_prefix(prefix, probe)):
            roles = ", ".join(turn["role"] for turn in probe)
            raise cli.InputError(f"the merged chat template renders another prompt than training for turns {roles}")


def weight(model: Any, name: str) -> Any:
    """A weight of the merged model, on the device; `name`: as in the base. With an adapter, added up in float32."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_bnb_weight

    path, _, kind = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, LoraLayer) and kind == "weight":
        return module.get_delta_weight("default").add_(dequantize_bnb_weight(module.get_base_layer().weight))
    return getattr(module.get_base_layer() if isinstance(module, LoraLayer) else module, kind)


def save(config: Any, dtype: str, out: Path, weight_of: Callable[[str], Any]) -> None:
    """Write config and weights as save_pretrained would; a weight is asked for when its file is put together."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):  # names and sizes
        bare = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    own = dict(bare.named_parameters())
    tied = {name for name, _ in bare.named_parameters(remove_duplicate=False)} - own.keys()
    plan = split_torch_state_dict_into_shards(
        {name: tensor for name, tensor in bare.state_dict().items() if name not in tied}, max_shard_size=SHARD
    )
    config.dtype, config.architectures = dtype, [type(bare).__name__]
    config.save_pretrained(out)
    for file, names in plan.filename_to_tensors.items():
        part = {name: weight_of(name).to("cpu", getattr(torch, dtype)).contiguous() for name in names}
        save_file(part, out / file, metadata={"format": "pt"})
        del part  # before the next file is put together
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True), encoding="utf-8")


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--base", "base model")
@cli.path_option("--adapter", "LoRA adapter")
@cli.path_option("--out", "folder to write")
def main(base: Path, adapter: Path, out: Path) -> None:
    cli.end_with_caller()
    settings, predict = params.load("merge", Params), params.load("predict", generate.Params)
    from peft import PeftModel
    from peft.helpers import rescale_adapter_scale
    from transformers import AutoConfig

    prefix = strict_json.read(adapter / "made_from.json")["prefix"]
    tokenizer, exported = loading.load_tokenizer(base), loading.load_tokenizer(base)
    exported.chat_template = with_prompt(tokenizer.chat_template, prefix)
    check_template(tokenizer, exported, prefix)
    device = loading.device(params.load("compute", loading.Params).device)[1]
    with loading.reading(adapter, "adapter_config.json"):
        model = PeftModel.from_pretrained(quantised.load(base, device), adapter).get_base_model()
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    # A share below 1 lies between the weights before and after training, and keeps more of the base (Lin et al. 2023,
    # arXiv 2309.06256).
    with rescale_adapter_scale(model, settings.scale), writing.replacing_folder(out, "made_from.json") as folder:
        save(config, settings.dtype, folder, partial(weight, model))
        generate.config(generate.stop_ids(model, tokenizer), predict.max_new_tokens).save_pretrained(folder)
        exported.save_pretrained(folder)
        shutil.copyfile(adapter / "made_from.json", folder / "made_from.json")
    click.echo(f"merge: {settings.dtype} -> {out}", err=True)


if __name__ == "__main__":
    main()
