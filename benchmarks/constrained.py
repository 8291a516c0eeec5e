"""What the grammar costs: its masks for the expected answers of the test rows, in batches as `constrained` has them.

    python -m benchmarks.constrained --out benchmarks/constrained.json

No model runs: each answer is replayed token by token, and the masks are put on random scores. CPU time is what to go by
on a busy machine.
"""

import time
from pathlib import Path
from typing import Any

import click


@click.command(help=__doc__)
@click.option("--base", type=click.Path(path_type=Path, exists=True), default="models/base", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="file for the figures")
def main(base: Path, out: Path) -> None:
    import torch

    from stages.shared import chat, grammar, model, params, strict_json

    size = params.load("predict", params.Predict).batch_size
    tokenizer = model.load_tokenizer(base)
    begun = time.perf_counter()
    rules = grammar.load(Path("data/schema.json"), tokenizer)
    prepared = time.perf_counter() - begun
    rows = strict_json.read_jsonl(Path("data/chat/test.jsonl"))
    answers = sorted((chat.answer_ids(tokenizer, row["answer"]) for row in rows), key=len)
    scores = torch.randn(size, len(tokenizer))
    wall = cpu = 0.0
    steps = 0
    for first in range(0, len(answers), size):
        batch = answers[first : first + size]
        width, mask = max(map(len, batch)), rules.mask(len(batch))
        end: Any = tokenizer.eos_token_id
        ids = torch.tensor([[end, *answer, *[end] * (width - len(answer))] for answer in batch])
        for length in range(1, width + 1):
            before = time.perf_counter(), time.process_time()
            mask(ids[:, :length], scores[: len(batch)])
            wall, cpu = wall + time.perf_counter() - before[0], cpu + time.process_time() - before[1]
        steps += width
    figures = {
        "answers": len(answers),
        "batch_size": size,
        "steps": steps,
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "cpu_ms_per_step": round(1000 * cpu / steps, 2),
        "prepare_seconds": round(prepared, 2),
    }
    strict_json.write_json(out, figures)
    click.echo(f"{figures}", err=True)


if __name__ == "__main__":
    main()
