"""What answers are worth: the verdict of each, which metric counts which verdicts, and the figures of many.

No other file knows any of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.core import strict_json, text
from stages.core.cli import InputError
from stages.data import contract, records
from stages.data.examples import Example
from stages.scores import stats

# Best first: a metric counts the answers that are at least as good as its last verdict.
VERDICTS = ("exact", "normalised", "wrong", "off_contract", "not_json")
METRICS = {"exact_match": 1, "exact_match_normalised": 2, "schema_valid": 3, "json_valid": 4}
ARTICLES = {"a", "an", "the"}
INVALID = "(invalid)"  # the kind of an answer that is not JSON


@dataclass(frozen=True)
class Prediction:
    """A line that `predict` wrote, as far as it is scored. `truncated`: the model had not stopped by itself."""

    id: str
    answer: str
    truncated: bool


@dataclass(frozen=True)
class Score:
    """One scored answer. Fields are the leaves of a JSON value; an answer that is not strict JSON has none."""

    example: Example
    prediction: Prediction
    verdict: str
    predicted_kind: str
    matched_fields: int
    predicted_fields: int
    expected_fields: int

    def counts(self, metric: str) -> bool:
        return counts(self.verdict, metric)


def counts(verdict: str, metric: str) -> bool:
    """Whether an answer with this verdict counts as a success of the metric. Raises KeyError for another metric."""
    return verdict in VERDICTS[: METRICS[metric]]


def loose(value: Any) -> Any:
    """Strings reduced to their words without articles: 'The budget review!' equals 'budget review', '-5' not '5'."""
    if isinstance(value, str) and any(map(str.isalpha, value)):
        return " ".join(word for word in text.normalise(value).split() if word not in ARTICLES)
    if isinstance(value, list):
        return [loose(item) for item in value]
    return {key: loose(item) for key, item in value.items()} if isinstance(value, dict) else value


def fields(value: Any, path: str = "") -> set[tuple[str, str]]:
    """The leaves of a JSON value as (path, JSON text) pairs. Empty objects and lists are leaves."""
    if isinstance(value, dict) and value:
        return {leaf for key, item in value.items() for leaf in fields(item, f"{path}/{key}")}
    if isinstance(value, list) and value:
        return {leaf for number, item in enumerate(value) for leaf in fields(item, f"{path}/{number}")}
    return {(path, strict_json.canonical(value))}


def score(example: Example, prediction: Prediction, rules: contract.Contract) -> Score:
    """The answer is parsed strictly: nothing is repaired."""
    expected = strict_json.parse(example.answer)
    try:
        given: Any = contract.parse_answer(prediction.answer)
    except strict_json.JsonError:
        return Score(example, prediction, "not_json", INVALID, 0, 0, len(fields(expected)))
    if strict_json.same(given, expected):
        verdict = "exact"
    elif rules.error(given) is not None:
        verdict = "off_contract"
    else:
        verdict = "normalised" if strict_json.same(loose(given), loose(expected)) else "wrong"
    wanted, found = fields(expected), fields(given)
    return Score(example, prediction, verdict, rules.kind(given), len(wanted & found), len(found), len(wanted))


def score_file(examples: list[Example], file: Path, rules: contract.Contract) -> list[Score]:
    """Score a file of predictions, paired by id. Raises InputError unless it answers exactly these examples."""
    predictions = {prediction.id: prediction for prediction in records.read(file, Prediction, extra="ignore")}
    if sorted(predictions) != sorted(example.id for example in examples):
        raise InputError(f"{file}: it answers other rows than those given; predict again, or delete a leftover file")
    return [score(example, predictions[example.id], rules) for example in examples]


def rates(scores: list[Score]) -> dict[str, Any]:
    """n, and each rate with its Wilson interval; `action_accuracy` where the contract has a discriminator."""
    found: dict[str, Any] = {"n": len(scores)}
    for metric in METRICS:
        found |= stats.rate(metric, (score.counts(metric) for score in scores))
    if any(score.example.kind for score in scores):
        found |= stats.rate("action_accuracy", (score.predicted_kind == score.example.kind for score in scores))
    return found


def field_f1(scores: list[Score]) -> dict[str, float]:
    """Micro F1 over fields: twice the equal fields over all fields predicted and expected; bootstrap interval.

    Where all fields are right, or none is, resampling would claim certainty: Wilson's bound for the rows stands in.
    """
    above = [2.0 * score.matched_fields for score in scores]
    below = [float(score.predicted_fields + score.expected_fields) for score in scores]
    groups, f1 = [score.example.group for score in scores], sum(above) / sum(below)
    low, high = stats.bootstrap_ratio(above, below, groups)
    if f1 in (0.0, 1.0):
        low, high = stats.wilson(int(f1) * len(set(groups)), len(set(groups)))
    return {"field_f1": f1, "field_f1_low": low, "field_f1_high": high}


def by(scores: list[Score], key: Callable[[Example], str]) -> dict[str, dict[str, Any]]:
    """The rates of each value of `key`; examples with none are left out."""
    parts: dict[str, list[Score]] = {}
    for score in scores:
        parts.setdefault(key(score.example), []).append(score)
    return {name: rates(part) for name, part in parts.items() if name}


def figures(scores: list[Score]) -> dict[str, Any]:
    """All figures of one system."""
    return {
        **rates(scores),
        **field_f1(scores),
        **stats.rate("truncated", (score.prediction.truncated for score in scores)),
        "slices": {
            "kind": by(scores, lambda example: example.kind),
            "turn": by(scores, Example.turn),
            "slice": by(scores, lambda example: example.slice),
        },
    }
