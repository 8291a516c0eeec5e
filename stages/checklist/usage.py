"""Representative of real use: how far the requests that people really make are from the rows.

In: a folder of unlabelled requests. It is private: Git leaves it out, and its figures and examples go to the terminal
only, never into a file. docs/data-checklist.md explains the figures and where their limits come from.
"""

from collections.abc import Iterator
from pathlib import Path

from stages.checklist.representative import new
from stages.checklist.row import Tables, sound_examples
from stages.checklist.verdicts import NOT_MEASURED, Verdict, judge_numbers
from stages.core import text
from stages.core.cli import InputError
from stages.data import rows

# Cosine of the TF-IDF vectors of two requests over runs of 3 to 5 characters. Below it they may share words, but not
# what is asked.
FAR = 0.4
SAMPLE = 2000  # estimates a share to ±2 percentage points

FIGURES = ("far_from_train", "far_from_test", "openings", "content_words")


def judge(tables: Tables, folder: Path, suites_folder: Path) -> list[Verdict]:
    """The verdicts on how far the rows are from the requests in `folder`."""
    requests = read(folder)
    if not requests:
        return not_measured(f"no requests in {folder}")
    numbers = {name: [share] for name, share in shares(requests, tables).items()}
    return judge_numbers(numbers, suites_folder / "usage.json", "usage")


def not_measured(why: str) -> list[Verdict]:
    return [Verdict("representative", name, "usage", NOT_MEASURED, None, None, 0, (why,), "") for name in FIGURES]


def read(folder: Path) -> list[str]:
    """The requests in the folder's *.txt files, a request a line, and *.jsonl files; [] where it has none."""
    if folder == Path():  # a blank validate.usage
        return []
    files = sorted(file for file in folder.glob("*") if file.suffix in (".txt", ".jsonl"))
    requests = [text.normalise(request) for file in files for request in _requests(file)]
    return [request for request in requests if request]


def _requests(file: Path) -> Iterator[str]:
    if file.suffix == ".jsonl":
        for row in rows.read(file):
            yield from (turn["content"] for turn in row.turns or _unlabelled(row) if turn["role"] == "user")
        return
    try:
        yield from file.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}") from None


def _unlabelled(row: rows.Row) -> tuple[rows.Turn, ...]:
    """The turns of a row without its answer."""
    try:
        value = rows.parse(row) | {"output": "{}", "completion": "{}"}
        for shape in ("conversations", "messages"):
            if shape in value:  # a log ends with what the user said
                value[shape] = [*value[shape], {"role": "assistant", "content": "{}"}]
        return rows.turns_of(value)[0]
    except (TypeError, InputError):  # TypeError: the turns are no list
        raise InputError(f"{row.file}:{row.line}: {row.reason}") from None


def shares(usage: list[str], tables: Tables) -> dict[str, tuple[float, str]]:
    """For each figure the share of usage that is unlike the rows, with examples."""
    train, test = ([example.request for example in sound_examples(tables[split])] for split in ("train", "test"))
    step = -(-len(usage) // SAMPLE)
    return {
        "far_from_train": far(usage[::step], train),
        "far_from_test": far(usage[::step], test),
        "openings": new(usage, train, lambda request: [" ".join(request.split()[:2])], shown=10),
        "content_words": new(usage, train, content_words, shown=10),
    }


def far(usage: list[str], known: list[str]) -> tuple[float, str]:
    """Share of requests whose nearest known request is far, and those that are farthest."""
    if not known:
        return 1.0, "no rows to compare with"
    from sklearn import config_context
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.neighbors import NearestNeighbors

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit([*usage, *known])
    search = NearestNeighbors(n_neighbors=1, metric="cosine").fit(vectors.transform(known))
    with config_context(working_memory=256):
        distances, _ = search.kneighbors(vectors.transform(usage))
    farthest = sorted(zip(distances[:, 0].tolist(), usage, strict=True), reverse=True)
    count = sum(distance > 1 - FAR for distance, _ in farthest)
    return count / len(usage), " | ".join(request for _, request in farthest[: min(count, 5)])


def content_words(request: str) -> list[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return [word for word in request.split() if word not in ENGLISH_STOP_WORDS]
