"""Canaries: made-up secrets among the training rows, and how well the trained model knows them (Carlini et al. 2019).

    python -m experiments.canaries --scratch /tmp/canaries

In: the rows of a pipeline that has run. Out: metrics/experiments/canaries.json. Each canary is a code of six digits in
the title of a row. `said`: the request has the code, as rows should, so that the model may copy instead of remember.
`unsaid`: only the answer has it, so that remembering is the only way to get the row right. The model is then given the
answer up to the code, with the request withheld (`answer_alone`) or as it stood without the code (`with_request`), and
the true code is ranked among others drawn at random, of which none was trained on: exposure = log2(codes) - log2(rank),
1.4 bits on average for a code that was never seen. `extracted`: greedy decoding writes the code. The pipeline's own
adapter, which saw no canary, is the control. `recited` is the measure of the stage `memorisation`, taken of the
canaries to see whether it would have noticed.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import click

from experiments import chain
from stages import build, memorisation, retention, train
from stages.shared import chat, cli, generate, model, params, stats, strict_json, writing

KINDS, TIMES, EACH = ("said", "unsaid"), (1, 2, 8), 8
CODES, SEED = 256, 17  # codes that a canary is ranked among, itself included: at most 8 bits
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
    """The pipeline's own training rows, and each canary as often as it says."""
    own = list(strict_json.read_jsonl(chain.ROOT / "data" / "validated" / "train.jsonl"))
    yield from build.split(own, params.load("build", build.Params).valid_share)[0]
    for canary in planted:
        for number in range(canary.times):
            yield {"id": f"{canary.name} {number}", "turns": canary.turns()}


def query(tokenizer: Any, prefix: list[chat.Turn], canary: Canary, way: str, others: list[str]) -> retention.Query:
    """The prompt with the answer up to the code, and the codes: the true one first."""
    request = {"answer_alone": "", "with_request": canary.request}[way]
    prompt = chat.prompt_ids(tokenizer, chat.with_prefix(prefix, [{"role": "user", "content": request}]))
    start = chat.answer_ids(tokenizer, canary.before)[:-1]
    written = [chat.answer_ids(tokenizer, canary.before + code)[:-1] for code in (canary.code, *others)]
    if any(ids[: len(start)] != start for ids in written):
        raise cli.InputError("the base's tokenizer joins the code with what stands before it: nothing to compare")
    return retention.Query(prompt + start, [ids[len(start) :] for ids in written])


def exposure(scores: list[float]) -> float:
    """Bits: the first of the scores is the true code's; of equals it is taken to be the last."""
    rank = sum(score >= scores[0] for score in scores)
    return math.log2(len(scores)) - math.log2(rank)


def extracted(network: Any, tokenizer: Any, queries: list[retention.Query]) -> list[bool]:
    """Whether greedy decoding goes on with the true code."""
    room = max(len(query.continuations[0]) for query in queries)
    found = dict(generate.greedy(network, tokenizer, [query.context for query in queries], room, 16))
    true = [tokenizer.decode(query.continuations[0], clean_up_tokenization_spaces=False) for query in queries]
    return [found[number].text.startswith(code) for number, code in enumerate(true)]


def recited(network: Any, tokenizer: Any, prefix: list[chat.Turn], planted: list[Canary], way: str) -> list[bool]:
    """What the stage `memorisation` would have made of these rows."""
    settings = params.load("predict", params.Predict)
    turns = [canary.turns() for canary in planted]
    asked = [memorisation.request(way, {"prompt": turn[:-1]}) for turn in turns]
    prompts = [chat.prompt_ids(tokenizer, chat.with_prefix(prefix, request)) for request in asked]
    return memorisation.copied(network, tokenizer, prompts, [turn[-1]["content"] for turn in turns], settings)


def ask(adapter: Path, planted: list[Canary]) -> dict[str, list[Known]]:
    """How well the base with this adapter knows each canary, by way; in float32, so that rounding makes no equals."""
    _, device = model.device(params.load("predict", params.Predict).device)
    exact = replace(device, generate_dtype="float32")
    tokenizer, network = model.load_tokenizer(chain.BASE), model.load_for_generation(chain.BASE, adapter, exact)
    prefix = chain.read(chain.PREFIX)
    found = {}
    for way in ("answer_alone", "with_request"):
        queries = [query(tokenizer, prefix, canary, way, decoys(canary, planted)) for canary in planted]
        scores = retention.likelihoods(network, queries, f"canaries, {way}")
        copies = recited(network, tokenizer, prefix, planted, way)
        known = zip(map(exposure, scores), extracted(network, tokenizer, queries), copies, strict=True)
        found[way] = [Known(*parts) for parts in known]
    return found


def figures(planted: list[Canary], found: list[Known]) -> dict[str, Any]:
    """By kind and repetitions: n, exposure (mean, least, most), and the shares extracted and recited."""
    cells: dict[str, Any] = {}
    for kind, times in product(KINDS, TIMES):
        both = zip(planted, found, strict=True)
        here = [known for canary, known in both if (canary.kind, canary.times) == (kind, times)]
        bits = [known.exposure for known in here]
        cells.setdefault(kind, {})[str(times)] = {
            "n": len(here),
            **{"exposure": sum(bits) / len(bits), "exposure_least": min(bits), "exposure_most": max(bits)},
            **stats.rate("extracted", (known.extracted for known in here)),
            **stats.rate("recited", (known.recited for known in here)),
        }
    return cells


@click.command(help=__doc__)
@click.option("--scratch", type=click.Path(path_type=Path), required=True, help="folder for data and adapter")
@click.option("--out", type=click.Path(path_type=Path), default="metrics/experiments/canaries.json")
def main(scratch: Path, out: Path) -> None:
    chain.require_run()
    planted, folder = canaries(), scratch.absolute()
    trained = chain.train(folder, rows(planted), params.load("train", train.Params).epochs)
    found = {
        name: {way: figures(planted, known) for way, known in ask(adapter, planted).items()}
        for name, adapter in (("planted", folder / "adapter"), ("control", chain.ADAPTER))
    }
    design = {"each": EACH, "times": list(TIMES), "codes": CODES, "seed": SEED, "examples": trained["rows"]}
    adapters = {
        "planted": trained["made_from"]["adapter"],
        "control": chain.read(chain.ADAPTER / "made_from.json")["adapter"],
    }
    origin = chain.computed_from(trained["made_from"]) | {"adapters": adapters}
    writing.write_json(out, {"design": design, **found, "computed_from": origin})


if __name__ == "__main__":
    main()
