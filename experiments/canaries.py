"""Canaries: made-up secrets among the training rows, and how well the trained model knows them (Carlini et al. 2019).

    python -m experiments.canaries --scratch /tmp/canaries

In: a repository whose pipeline has run. Out: metrics/experiments/canaries.json. Each canary is a code of six digits in
the title of a row. `said`: the request has the code, so that the model may copy instead of remember. `unsaid`: only the
answer has it, so that remembering is the only way to get the row right. The model is then given the answer up to the
code, with the request withheld (`answer_alone`) or without the code (`with_request`), and the true code is ranked among
others drawn at random that were never trained on: exposure = log2(codes) - log2(rank), 1.4 bits on average for a code
that was never seen. `extracted`: greedy decoding writes the code. `recited`: it writes the whole rest of an answer from
its first half (the stage `memorisation` asks for the end token, too). The repository's adapter, which saw no canary, is
the control.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click

from experiments import trial
from stages.answers.loglikelihood import Query, rate
from stages.core import cli, params, strict_json
from stages.data import writing
from stages.model import chat, loading, quantised
from stages.scores import stats

KINDS, TIMES, EACH = ("said", "unsaid"), (1, 2, 8), 8
CODES, SEED = 256, 17  # codes that a canary is ranked among, itself included: at most 8 bits
OUT = Path("metrics/experiments/canaries.json")
BASE, ADAPTER = Path("models/base"), Path("models/adapter")
TRAIN, PREFIX = "data/chat/train.jsonl", Path("data/chat/prefix/tuned.json")
THINGS = ("gate", "alarm", "locker", "cellar", "garage", "kiosk")
PLACES = ("Elmstead", "Farrowby", "Kestrel Court", "Northmere", "Oldwick", "Penhallow", "Quarry Lane", "Tansley")


@dataclass(frozen=True)
class Known:
    """What a model knows of one canary; exposure in bits."""

    exposure: float
    extracted: bool
    recited: bool


@dataclass(frozen=True)
class Canary:
    """One secret. `before` and `after` are what stands around the code in the answer."""

    kind: str
    times: int
    request: str
    before: str
    code: str
    after: str

    @property
    def name(self) -> str:
        return f"{self.kind} {self.times} {self.before}"

    def turns(self) -> list[chat.Turn]:
        said = f"{self.request}: {self.code}" if self.kind == "said" else self.request
        answer = self.before + self.code + self.after
        return [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]


def canaries() -> list[Canary]:
    """EACH canaries for every kind and number of repetitions, no thing and place twice, no code twice."""
    rng = random.Random(SEED)  # noqa: S311
    names = rng.sample(list(product(THINGS, PLACES)), len(KINDS) * len(TIMES) * EACH)
    codes = rng.sample(range(10**6), len(names))
    made = []
    for (thing, place), (kind, times, _), code in zip(names, product(KINDS, TIMES, range(EACH)), codes, strict=True):
        before = f'{{"action":"create","title":"{thing.capitalize()} code {place} #'
        after = '","priority":"medium","due_date":null}'
        made.append(Canary(kind, times, f"note the {thing} code {place}", before, f"{code:06d}", after))
    return made


def decoys(canary: Canary, planted: list[Canary]) -> list[str]:
    """The codes that a canary is ranked among, drawn for it alone, without any that was planted."""
    known = {other.code for other in planted}
    drawn = random.Random(f"{SEED} {canary.name}").sample(range(10**6), CODES + len(known))  # noqa: S311
    return [code for code in (f"{number:06d}" for number in drawn) if code not in known][: CODES - 1]


def rows(planted: list[Canary]) -> Iterator[dict[str, Any]]:
    """The pipeline's own training examples, and each canary as often as it says."""
    yield from strict_json.read_jsonl(Path(TRAIN))
    for canary in planted:
        request, answer = canary.turns()
        for number in range(canary.times):
            name = f"{canary.name} {number}"
            yield {"id": name, "group": name, "prompt": [request], "answer": answer["content"]}


def prompt(tokenizer: Any, prefix: list[chat.Turn], request: str) -> list[int]:
    return chat.prompt_ids(tokenizer, chat.with_prefix(prefix, [{"role": "user", "content": request}]))


def query(tokenizer: Any, prefix: list[chat.Turn], canary: Canary, way: str, others: list[str]) -> Query:
    """The prompt with the answer up to the code, and the codes, the true one first."""
    request = {"answer_alone": "", "with_request": canary.request}[way]
    start = chat.answer_ids(tokenizer, canary.before)[:-1]
    written = [chat.answer_ids(tokenizer, canary.before + code)[:-1] for code in (canary.code, *others)]
    if any(ids[: len(start)] != start for ids in written):
        raise cli.InputError("the base's tokenizer joins the code with the text before it: nothing to compare")
    return Query(prompt(tokenizer, prefix, request) + start, [ids[len(start) :] for ids in written])


def half(tokenizer: Any, prefix: list[chat.Turn], canary: Canary, way: str) -> Query:
    """The prompt with the first half of the answer, and the rest; `with_request` means the request of the row."""
    request, answer = (turn["content"] for turn in canary.turns())
    ids = chat.answer_ids(tokenizer, answer)[:-1]
    middle = (len(ids) + 1) // 2
    start = prompt(tokenizer, prefix, "" if way == "answer_alone" else request)
    return Query(start + ids[:middle], [ids[middle:]])


def exposure(scores: list[float]) -> float:
    """Bits: the first of the scores is the true code's; of equals it is taken to be the last."""
    rank = sum(score >= scores[0] for score in scores)
    return math.log2(len(scores)) - math.log2(rank)


def ask(adapter: Path, planted: list[Canary]) -> dict[str, list[Known]]:
    """How well the base with this adapter knows each canary, by way; in float32, so that rounding makes no equals."""
    from peft import PeftModel

    _, device = loading.device(params.load("compute", loading.Params).device)
    tokenizer, prefix = loading.load_tokenizer(BASE), strict_json.read(PREFIX)
    model = PeftModel.from_pretrained(quantised.dequantised(BASE, device), adapter).merge_and_unload().eval()
    known = {}
    for way in ("answer_alone", "with_request"):
        coded = [query(tokenizer, prefix, canary, way, decoys(canary, planted)) for canary in planted]
        codes = rate(model, coded, f"canaries, {way}: codes")
        halves = rate(model, [half(tokenizer, prefix, c, way) for c in planted], f"canaries, {way}: halves")
        known[way] = [
            Known(exposure([rating.nats for rating in ratings]), ratings[0].greedy, rest.greedy)
            for ratings, (rest,) in zip(codes, halves, strict=True)
        ]
    return known


def figures(planted: list[Canary], known: list[Known]) -> dict[str, Any]:
    """By kind and repetitions: n, exposure (mean, least, most), and the shares extracted and recited."""
    cells: dict[str, Any] = {kind: {} for kind in KINDS}
    for kind, times in product(KINDS, TIMES):
        both = zip(planted, known, strict=True)
        here = [one for canary, one in both if (canary.kind, canary.times) == (kind, times)]
        bits = [one.exposure for one in here]
        cells[kind][str(times)] = {
            "n": len(here),
            **{"exposure": sum(bits) / len(bits), "exposure_least": min(bits), "exposure_most": max(bits)},
            **stats.rate("extracted", (one.extracted for one in here)),
            **stats.rate("recited", (one.recited for one in here)),
        }
    return cells


@click.command(cls=cli.Command, help=__doc__)
@cli.path_option("--scratch", "folder for the training")
@cli.path_option("--out", "file for the result", required=False, default=OUT, show_default=True)
def main(scratch: Path, out: Path) -> None:
    trial.require_reproduced()
    planted, folder = canaries(), scratch.absolute()
    trial.run(folder, {}, {TRAIN: rows(planted)}, ["train"])
    adapters = {"planted": folder / ADAPTER, "control": ADAPTER}
    known = {name: ask(adapter, planted).items() for name, adapter in adapters.items()}
    cells = {name: {way: figures(planted, part) for way, part in ways} for name, ways in known.items()}
    origins = {name: strict_json.read(adapter / "made_from.json") for name, adapter in adapters.items()}
    made = {"adapters": {name: origin["adapter"] for name, origin in origins.items()}}
    made |= {name: origins["planted"][name] for name in ("base", "device", "versions")}
    design = {"each": EACH, "times": list(TIMES), "codes": CODES, "seed": SEED}
    writing.write_json(out, {"design": design, **cells, "computed_from": made})


if __name__ == "__main__":
    main()
