"""Should this be a fine-tune? The usual decision tree, answered from what this repository has measured.

In: metrics/evaluate.json, metrics/train.json, benchmarks/latency.json where there is one (perhaps of an earlier model),
and your own figures in advise.yaml. Out: a line for each question that can be answered, a recommendation, and which
figures would sharpen it.
Where a measurement and a rule of thumb disagree, the measurement decides: the paired gain over few-shot prompting
before the number of rows, the calculated price before the number of requests.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import click
from annotated_types import Ge

from stages.core import cli, params, strict_json

OWN, EVALUATED, TRAINED = Path("advise.yaml"), Path("metrics/evaluate.json"), Path("metrics/train.json")
LATENCY = Path("benchmarks/latency.json")
ENOUGH_ROWS, MANY_REQUESTS = 500, 1000  # rules of thumb: worth trying; likely to pay, where prices are not known
Amount = Annotated[float, Ge(0)]
Interval = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class Own:
    """The user's own figures. None: not known."""

    knowledge_changes: bool | None
    task_changes: bool | None
    differentiation: bool | None
    minimum_accuracy: params.Share | None
    latency_target_ms: params.Positive | None
    requests_a_day: Amount | None
    prompt_price: Amount | None
    answer_price: Amount | None
    machine_day_price: Amount | None
    version_price: Amount | None
    lifetime_days: params.Positive


@dataclass(frozen=True)
class Measured:
    """What this repository knows; what `benchmarks.latency` has not measured is None. p95 in milliseconds."""

    few_shot: Interval
    tuned: Interval
    gain: Interval
    rows: float
    tokens: tuple[float, ...] | None = None  # of a few-shot prompt, and of its answer
    few_shot_p95: Interval | None = None
    tuned_p95: Interval | None = None


def figures(file: Path, path: str, *names: str) -> Any:
    """Numbers at a dotted path of a JSON file. Raises InputError naming what is missing."""
    found, numbers = strict_json.read(file), []
    for key in filter(None, path.split(".")):
        found = found.get(key) if isinstance(found, dict) else None
    for name in names:
        value = found.get(name) if isinstance(found, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise cli.InputError(f"{file}: {path + '.' if path else ''}{name} is not a number")
        numbers.append(float(value))
    return tuple(numbers)


def measured() -> Measured:
    gain = figures(EVALUATED, "gain_over_few_shot", "exact_match", "low", "high")
    rate = ("exact_match", "exact_match_low", "exact_match_high")
    few_shot, tuned = (figures(EVALUATED, system, *rate) for system in ("few_shot", "tuned"))
    known = Measured(few_shot, tuned, gain, figures(TRAINED, "", "rows")[0])
    if not LATENCY.is_file():
        return known
    tokens = figures(LATENCY, "systems.few_shot", "prompt_tokens", "answer_tokens")
    p95 = [figures(LATENCY, f"systems.{s}", "p95_ms", "p95_ms_low", "p95_ms_high") for s in ("few_shot", "tuned")]
    return replace(known, tokens=tokens, few_shot_p95=p95[0], tuned_p95=p95[1])


def break_even(own: Own, known: Measured) -> float | None:
    """Requests a day from which the tuned model's machine costs less than prompting a hosted one; None: not known."""
    if known.tokens is None or own.machine_day_price is None or own.prompt_price is None or own.answer_price is None:
        return None
    request = (known.tokens[0] * own.prompt_price + known.tokens[1] * own.answer_price) / 1000
    return (own.machine_day_price + (own.version_price or 0) / own.lifetime_days) / request if request else math.inf


def reasons(own: Own, known: Measured) -> Iterator[str]:
    """What speaks for fine-tuning."""
    even, requests = break_even(own, known), own.requests_a_day
    if requests is not None and requests >= (MANY_REQUESTS if even is None else even):
        yield "this many requests usually pay for it" if even is None else "it costs less at this volume"
    target, slow, fast = own.latency_target_ms, known.few_shot_p95, known.tuned_p95
    if target and slow and fast and slow[1] > target >= fast[2]:  # shown beyond chance, both ways
        yield "it meets the latency target and prompting does not"
    if own.differentiation:
        yield "the behaviour is worth owning"
    if known.gain[1] > 0 and (own.minimum_accuracy is None or known.few_shot[1] < own.minimum_accuracy):
        yield "it is right more often than few-shot prompting, beyond chance"


def recommendation(own: Own, known: Measured) -> str:
    """Down the tree to the first branch that decides."""
    if own.knowledge_changes:
        return "retrieval: answers depend on facts that change, which training does not teach"
    if own.task_changes:
        return "prompting: settle the behaviour first; a prompt is changed in a minute"
    if known.gain[2] < 0:
        return "few-shot prompting: it is right more often than the tuned model, beyond chance"
    if known.rows < ENOUGH_ROWS and known.gain[1] <= 0:
        return f"few-shot prompting: {known.rows:.0f} training rows are few; collect more"
    why = "; ".join(reasons(own, known))
    return f"fine-tune: {why}" if why else "few-shot prompting: nothing that is known speaks for fine-tuning"


def lines(own: Own, known: Measured) -> Iterator[str]:
    """At most ten lines."""

    def shown(value: Interval, style: str = ".3f") -> str:
        return "{:{f}} [{:{f}}, {:{f}}]".format(*value, f=style)

    yield f"exact match: few-shot {shown(known.few_shot)}, tuned {shown(known.tuned)}, gain {shown(known.gain, '+.3f')}"
    yield f"training answers: {known.rows:.0f}; the rule of thumb asks for {ENOUGH_ROWS}"
    if known.few_shot_p95 and known.tuned_p95:
        slow, fast = shown(known.few_shot_p95, ".0f"), shown(known.tuned_p95, ".0f")
        yield f"95 of 100 answers within: few-shot {slow} ms, tuned {fast} ms"
    if (even := break_even(own, known)) is not None:
        yield f"break-even with a hosted model: {even:,.0f} requests a day"
    answer = recommendation(own, known)
    yield f"Recommendation: {answer}"
    if answer.startswith("fine-tune"):
        yield "But prompting was measured with this base model; a larger one may do better with a prompt alone."
        if own.minimum_accuracy is not None and known.tuned[1] < own.minimum_accuracy:
            yield f"But the tuned model is not shown to reach minimum_accuracy = {own.minimum_accuracy:g}."
    if unknown := [name for name, value in vars(own).items() if value is None]:
        yield f"These figures in {OWN} would sharpen it: {', '.join(unknown)}"


@click.command(cls=cli.Command, help=__doc__)
def main() -> None:
    click.echo("\n".join(lines(params.load("advise", Own, OWN), measured())))


if __name__ == "__main__":
    main()
