"""Let the base model answer general prompts. Training repeats these answers, so that less else is forgotten.

In: prompts, the base model. Out: data/chat/replay.jsonl, a line per prompt with the base model's answer, which stands
in for data that the base was trained on (self-synthesized rehearsal, Huang et al. 2024, arXiv 2403.01244). Answers are
sampled: the likeliest words alone would teach the tuned model to be sure where the base is not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import click
from annotated_types import Ge, MinLen

from stages.answers import generate
from stages.core import cli, params
from stages.data import records, writing
from stages.model import chat, loading


@dataclass(frozen=True)
class Params:
    """`prompts`: how many of them, from the top of the file. `max_new_tokens`: longer answers are cut there."""

    prompts: Annotated[int, Ge(0)]
    max_new_tokens: params.Count
    seed: int


class Sampled:
    """A mask (generate.Mask) under which the highest score is a draw from the model's probabilities (Gumbel-max)."""

    def __init__(self, random: Any) -> None:
        self.random = random

    def __call__(self, last: list[int] | None, scores: Any) -> Any:
        import torch

        drawn = torch.empty(scores.shape, dtype=torch.float32).exponential_(generator=self.random)
        return scores.float() - drawn.log().to(scores.device)

    def keep(self, rows: list[int]) -> None:
        """Nothing is remembered of a row."""


@dataclass(frozen=True)
class Prompt:
    id: Annotated[str, MinLen(1)]
    prompt: Annotated[str, MinLen(1)]


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--prompts", "general prompts")
@cli.path_option("--base", "base model")
@cli.path_option("--out", "chat rows to write")
def main(prompts: Path, base: Path, out: Path) -> None:
    cli.end_with_caller()
    settings, batch_size = params.load("replay", Params), params.load("predict", generate.Params).batch_size
    asked = records.read(prompts, Prompt)[: settings.prompts]
    _, device = loading.device(params.load("compute", loading.Params).device)
    turns = [[{"role": "user", "content": one.prompt}] for one in asked]
    answers: list[generate.Answer] = []
    if asked:
        import torch

        tokenizer, model = loading.load_tokenizer(base), loading.load_model(base, device.generate_dtype, device.name)
        ids = [chat.prompt_ids(tokenizer, prompt) for prompt in turns]
        mask = Sampled(torch.Generator().manual_seed(settings.seed))
        limits = generate.Params(batch_size, settings.max_new_tokens)
        answers = generate.answers(model, tokenizer, limits, ids, lambda _: mask)
    lines = (
        {"id": one.id, "prompt": prompt, "answer": answer.text, "truncated": answer.truncated}
        for one, prompt, answer in zip(asked, turns, answers, strict=True)
    )
    writing.write_jsonl(out, lines)
    click.echo(f"replay: {len(answers)} answers of the base model", err=True)


if __name__ == "__main__":
    main()
