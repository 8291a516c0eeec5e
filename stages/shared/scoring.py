"""What one answer is worth: the verdict, and which metric counts which verdicts. No other file knows either."""

from dataclasses import dataclass
from typing import Any

from stages.shared import contract, strict_json, text
from stages.shared.rows import Turn

# Best first: a metric counts the answers that are at least as good as its last verdict.
VERDICTS = ("exact", "normalised", "wrong", "off_contract", "not_json")
METRICS = {"exact_match": 1, "exact_match_normalised": 2, "schema_valid": 3, "json_valid": 4}
ARTICLES = {"a", "an", "the"}
INVALID = "(invalid)"  # the kind of an answer that is not JSON


@dataclass(frozen=True)
class Score:
    """One answer. `matched`, `predicted` and `expected` count fields: equal ones, those given, those expected."""

    id: str
    group: str
    slice: str
    turn: str
    expected_kind: str
    predicted_kind: str
    verdict: str
    matched: int
    predicted: int
    expected: int
    truncated: bool
    answer: str


def counts(verdict: str, metric: str) -> bool:
    """Whether an answer with this verdict counts as a success of the metric. Raises KeyError for another metric."""
    return verdict in VERDICTS[: METRICS[metric]]


def loose(value: Any) -> Any:
    """Strings reduced to their words without articles: 'The budget review!' equals 'budget review'."""
    if isinstance(value, str):
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


def verdict(answer: str, expected: Any, rules: contract.Contract) -> str:
    """One of VERDICTS. The answer is parsed strictly: nothing is repaired."""
    try:
        given = contract.parse_answer(answer)
    except strict_json.JsonError:
        return "not_json"
    if strict_json.same(given, expected):
        return "exact"
    if rules.error(given) is not None:
        return "off_contract"
    return "normalised" if strict_json.same(loose(given), loose(expected)) else "wrong"


def turn(prompt: list[Turn]) -> str:
    """`first` for the first request of a conversation, `later` for the others."""
    return "first" if sum(part["role"] == "user" for part in prompt) == 1 else "later"


def score(example: dict[str, Any], prediction: dict[str, Any], rules: contract.Contract) -> Score:
    """Score one prediction for one example, as build and predict wrote them.

    An answer that is not strict JSON has no fields at all.
    """
    expected = strict_json.parse(example["answer"])
    found = verdict(prediction["answer"], expected, rules)
    given = None if found == "not_json" else contract.parse_answer(prediction["answer"])
    expected_fields, given_fields = fields(expected), fields(given) if given is not None else set()
    return Score(
        id=example["id"],
        group=example["group"],
        slice=example.get("slice", ""),
        turn=turn(example["prompt"]),
        expected_kind=rules.kind(expected),
        predicted_kind=INVALID if given is None else rules.kind(given),
        verdict=found,
        matched=len(expected_fields & given_fields),
        predicted=len(given_fields),
        expected=len(expected_fields),
        truncated=prediction["truncated"],
        answer=prediction["answer"],
    )
