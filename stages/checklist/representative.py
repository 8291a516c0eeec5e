"""Representative: training rows are like the test rows, and none of them is a test row."""

from collections import Counter, defaultdict
from typing import Any

from stages.checklist.row import Checked, Example, sound
from stages.shared import text


def check_leaks(train: list[Checked], test: list[Checked]) -> None:
    """Refuse training rows that hold a test request, whatever system prompt either has."""
    requests = {example.talk: checked.where for checked in test for example in checked.examples}
    for checked in train:
        found = [requests[example.talk] for example in checked.examples if example.talk in requests]
        if found:
            checked.reasons["leak"] = f"same request as the test row {found[0]}"


def check_near_leaks(train: list[Checked], test: list[Checked], similarity: float) -> None:
    """Refuse training rows with a request nearly that of a test row, and the same answer.

    Where the answer is another one, the small difference is what the test row asks about.
    """
    from rapidfuzz import fuzz, process

    known: dict[str, dict[str, str]] = defaultdict(dict)
    for checked in sound(test):
        for example in checked.examples:
            known[example.key].setdefault(text.normalise(example.said), checked.where)
    for checked in sound(train):
        for example in checked.examples:
            asked, requests = text.normalise(example.said), known.get(example.key, {})
            if found := process.extractOne(asked, list(requests), scorer=fuzz.ratio, score_cutoff=100 * similarity):
                checked.reasons["near_leak"] = f"{found[1] / 100:.0%} like the test row {requests[found[0]]}"


def comparison(train: list[Checked], test: list[Checked]) -> dict[str, tuple[float, str]]:
    """Distances between the sound rows of the two splits, from 0 (alike) to 1, each with what differs most."""
    known, asked = examples(train), examples(test)
    return {"action_mix": action_mix(known, asked), "length": length(known, asked), "vocabulary": unseen(known, asked)}


def examples(table: list[Checked]) -> list[Example]:
    return [example for checked in sound(table) for example in checked.examples]


def action_mix(train: list[Example], test: list[Example]) -> tuple[float, str]:
    """Total variation distance between the shares of the kinds of answer; 0 where the contract knows no kinds."""
    shares = [Counter(example.kind for example in part) for part in (train, test)]
    kinds = sorted(set(shares[0]) | set(shares[1]))
    gaps = [shares[1][kind] / max(len(test), 1) - shares[0][kind] / max(len(train), 1) for kind in kinds]
    widest = max(range(len(kinds)), key=lambda number: abs(gaps[number]), default=None)
    example = "" if widest is None else f"{kinds[widest]!r}: {gaps[widest]:+.0%} in test"
    return sum(map(abs, gaps)) / 2, example


def length(train: list[Example], test: list[Example]) -> tuple[float, str]:
    """Kolmogorov-Smirnov distance between the numbers of words of the requests."""
    from scipy.stats import ks_2samp

    sizes: list[Any] = [[len(example.request.split()) for example in part] for part in (train, test)]
    if not all(sizes):
        return 1.0, "no rows"
    found: Any = ks_2samp(*sizes)
    return float(found.statistic), f"{found.statistic_location:.0f} words or fewer"


def unseen(train: list[Example], test: list[Example]) -> tuple[float, str]:
    """Share of the words of the test requests, repeated ones counted again, that no training request has."""
    known = {word for example in train for word in example.request.split()}
    words = Counter(word for example in test for word in example.request.split())
    new = Counter({word: count for word, count in words.items() if word not in known})
    return new.total() / max(words.total(), 1), ", ".join(word for word, _ in new.most_common(5))
