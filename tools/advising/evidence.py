"""What advice rests on: the files that the pipeline and tools.latency wrote, and the user's own figures.

Each dataclass names the part of a file that is read; the rest of the file is ignored. Nothing is guessed: a file that
lacks a figure, or has one of the wrong kind, is an error that names the file and the figure.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar, cast

from annotated_types import Ge, Le

from stages.shared import cli, params, strict_json

Amount = Annotated[float, Ge(0)]
Signed = Annotated[float, Ge(-1), Le(1)]
Part = TypeVar("Part")
MEASURE = "python -m tools.latency"


@dataclass(frozen=True)
class Own:
    """The section `advise`: the user's own figures. None: not known."""

    requests_a_day: Amount | None
    latency_target_ms: params.Positive | None
    minimum_accuracy: params.Share | None
    differentiation: bool | None
    knowledge_changes: bool | None
    task_changes: bool | None
    prompt_price: Amount | None
    answer_price: Amount | None
    machine_hour_price: Amount | None
    machine_hours_a_day: Annotated[float, Ge(0), Le(24)]
    preparation_cost: Amount | None
    lifetime_days: params.Positive
    enough_examples: params.Count
    high_volume: params.Count


@dataclass(frozen=True)
class Check:
    verdict: Literal["held", "warning", "critical"]
    example: str | None


@dataclass(frozen=True)
class Rows:
    kept: Annotated[int, Ge(0)]


@dataclass(frozen=True)
class Validated:
    """metrics/validate.json: the checklist as group, check, scope, and the count of sound training rows."""

    checklist: dict[str, dict[str, dict[str, Check]]]
    train: Rows

    def failed(self, group: str, *verdicts: str) -> list[str]:
        """The checks of a group that came out as one of `verdicts`, in any scope."""
        checks = self.checklist.get(group, {})
        return sorted(name for name, found in checks.items() if any(c.verdict in verdicts for c in found.values()))

    def all_failed(self, *verdicts: str) -> list[str]:
        """The same over all groups, as group.check."""
        return [f"{group}.{name}" for group in sorted(self.checklist) for name in self.failed(group, *verdicts)]


@dataclass(frozen=True)
class Accuracy:
    """The exact match of one system on the test rows, with its 95% interval."""

    exact_match: params.Share
    exact_match_low: params.Share
    exact_match_high: params.Share

    def reaches(self, minimum: float | None) -> bool | None:
        """Whether the whole interval lies at or above the minimum, or below it; None: it can't be told."""
        if minimum is None or self.exact_match_low < minimum <= self.exact_match_high:
            return None
        return self.exact_match_low >= minimum

    def __str__(self) -> str:
        return f"{self.exact_match:.3f} [{self.exact_match_low:.3f}, {self.exact_match_high:.3f}]"


@dataclass(frozen=True)
class Gain:
    """How much more often the tuned model is exactly right than few_shot on the same rows, with its 95% interval."""

    exact_match: Signed
    low: Signed
    high: Signed
    n: params.Count

    def __str__(self) -> str:
        return f"{self.exact_match:+.3f} [{self.low:+.3f}, {self.high:+.3f}] on {self.n} test rows"


@dataclass(frozen=True)
class Origin:
    adapter: str
    test: str


@dataclass(frozen=True)
class Evaluated:
    """metrics/evaluate.json."""

    zero_shot: Accuracy
    few_shot: Accuracy
    tuned: Accuracy
    gain_over_few_shot: Gain
    computed_from: Origin


@dataclass(frozen=True)
class Trained:
    """metrics/timing/train.json."""

    seconds: Amount


@dataclass(frozen=True)
class Speed:
    """What one system took: tokens a request, milliseconds alone, answers a second in batches.

    `prefix_ms`: the milliseconds that an answer takes longer where the prefix is computed for each.
    """

    prompt_tokens: params.Positive
    answer_tokens: Amount
    p50_ms: params.Positive
    p95_ms: params.Positive
    p95_ms_low: params.Positive | None
    p95_ms_high: params.Positive | None
    prefix_ms: float
    answers_per_second: params.Positive

    def meets(self, target: float) -> bool | None:
        """Whether 95 of 100 answers come within `target` ms; None: the interval of the percentile holds the target."""
        if self.p95_ms_high is not None and self.p95_ms_high <= target:
            return True
        return False if self.p95_ms_low is not None and self.p95_ms_low > target else None

    def __str__(self) -> str:
        low, high = ("?" if edge is None else f"{edge:.0f}" for edge in (self.p95_ms_low, self.p95_ms_high))
        return f"{self.p95_ms:.0f} ms [{low}, {high}]"


@dataclass(frozen=True)
class Device:
    name: str


@dataclass(frozen=True)
class Systems:
    zero_shot: Speed
    few_shot: Speed
    tuned: Speed


@dataclass(frozen=True)
class Latency:
    """metrics/timing/latency.json."""

    device: Device
    systems: Systems
    computed_from: Origin


def read(path: Path, part: type[Part], remedy: str = "make repro") -> Part:
    """The figures of `part` from a JSON file. Raises InputError, in one line, naming file, figure and remedy."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.dataclasses import dataclass as checked

    try:
        text = path.read_text(encoding="utf-8")
        strict_json.parse(text)
        config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
        return cast(Part, TypeAdapter(checked(part, frozen=True, config=config)).validate_json(text))
    except FileNotFoundError:
        raise cli.InputError(f"{path} is missing; run `{remedy}`") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{step}: " for step in [".".join(map(str, first["loc"]))] if step)
        raise cli.InputError(f"{path}: {where}{first['msg']}; run `{remedy}`") from None
    except (OSError, ValueError) as error:
        raise cli.InputError(f"{path}: {error}") from None
