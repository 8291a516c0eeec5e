"""Representative: training rows are like the test rows, and none of them is a test row. See also usage.py.

Each figure is a distance between the sound rows of the two splits, from 0 (alike) to 1, with what differs most.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from stages.checklist.clean import near
from stages.checklist.row import Example, Table, own_words, sound, sound_examples
from stages.core import text


def check_leaks(train: Table, test: Table) -> None:
    """Refuse training rows with a test request, whatever system prompt either has."""
    requests = {example.dialogue: checked.where for checked in test for example in checked.examples}
    for checked in train:
        if leaks := [requests[example.dialogue] for example in checked.examples if example.dialogue in requests]:
            checked.reasons["leak"] = f"same request as the test row {leaks[0]} (system turns don't count)"


def check_near_leaks(train: Table, test: Table, similarity: float) -> None:
    """Refuse training rows with a request nearly that of a test row, and the same answer.

    Where the answer is another one, the small difference is what the test row asks about.
    """
    known: dict[str, dict[str, str]] = defaultdict(dict)
    asked = [(checked, example) for table in (test, train) for checked in sound(table) for example in checked.examples]
    requests = own_words([text.normalise(example.user) for _, example in asked])
    tested = len(sound_examples(test))
    for (checked, example), request in zip(asked[:tested], requests[:tested], strict=True):
        known[example.key].setdefault(request, checked.where)
    for (checked, example), request in zip(asked[tested:], requests[tested:], strict=True):
        if nearest := near(request, known.get(example.key, {}), similarity):
            checked.reasons["near_leak"] = f"{nearest}, a test row with the same answer"


def action_mix(train: list[Example], test: list[Example]) -> tuple[float, str]:
    """Total variation distance between the shares of the kinds of answer; 0 where the contract knows no kinds."""
    shares = [Counter(example.kind for example in split) for split in (train, test)]
    kinds = sorted(set(shares[0]) | set(shares[1]))
    gaps = {kind: shares[1][kind] / max(len(test), 1) - shares[0][kind] / max(len(train), 1) for kind in kinds}
    widest = max(kinds, key=lambda kind: abs(gaps[kind]), default=None)
    return sum(map(abs, gaps.values())) / 2, "" if widest is None else f"{widest!r}: {gaps[widest]:+.0%} in test"


def length(train: list[Example], test: list[Example]) -> tuple[float, str]:
    """Kolmogorov-Smirnov distance between the numbers of words of the requests."""
    from scipy.stats import ks_2samp

    sizes: list[Any] = [[len(example.request.split()) for example in split] for split in (train, test)]
    if not all(sizes):
        return 1.0, "no rows"
    distance: Any = ks_2samp(*sizes)
    return float(distance.statistic), f"{distance.statistic_location:.0f} words or fewer"


def unseen(train: list[Example], test: list[Example]) -> tuple[float, str]:
    """Share of the words of the test requests that no training request has."""
    return new([example.request for example in test], [example.request for example in train], str.split, shown=5)


def new(asked: list[str], known: list[str], parts: Callable[[str], list[str]], shown: int) -> tuple[float, str]:
    """Share of the parts of `asked`, repeated ones counted again, that nothing known has, and the most frequent."""
    seen = {part for request in known for part in parts(request)}
    used = [part for request in asked for part in parts(request)]
    missing = [part for part in used if part not in seen]
    return len(missing) / max(len(used), 1), ", ".join(part for part, _ in Counter(missing).most_common(shown))
