"""What a change touched: answers that flipped, rows, code, and texts such as params and contract.

In: Git trees. Out: listings and notes for the report. No YAML is parsed: a text is shown as the lines that differ.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from review import rows
from review.compare import SEEDS, Outcome, Pair, Rule
from review.inert import Safe
from stages.data.rows import Row
from versions import history

# What decides the verdict: who changes it changes the judge. A test holds the list to the imports.
JUDGE = [".ci", ".github", "gate.yaml", "review", "stages/core", "stages/data", "stages/evaluate.py", "stages/scores"]
JUDGE += [SEEDS, "tools/__init__.py", "tools/report.py", "versions"]
# What Python may run in place of a module of the judge: another of its name that it finds first, or byte code.
SHADOW = re.compile(
    r"([^/]+|tools/report|stages/evaluate)(/__init__)?\.([^/]+\.)?(py|pyc|so)|((stages|tools)/)?__pycache__/.*"
)
HASH = re.compile(r"[+-]\s+--hash=sha256:[0-9a-f]{64}( \\)?")  # of a pinned library: the version is what is read
TESTS = ["data/behaviour", "data/general/items.jsonl", "data/general/text.jsonl"]
NOTED = {
    "⚠️ **What the gate goes by was changed**; it takes effect once this is merged": JUDGE,
    "Code of the pipeline changed": ["dvc.yaml", "expectations", "stages"],
    "Tests beside the test rows changed; only those that stayed are compared": TESTS,
}
HELD = "Files that DVC holds were changed; their rows are not in Git, and not listed"
TEXTS = {
    "Params": "params.yaml",
    "The gate": "gate.yaml",
    "Contract, which scores each side's answers": "data/schema.json",
    "Labelling rules": "data/rules.yaml",
    "Pinned libraries": "constraints.txt",
    "Replayed prompts": "data/general/prompts.jsonl",
    "Data checklist": "metrics/validate.json",
    "Training": "metrics/train.json",
    "Timing": "metrics/timing",
}
Note = tuple[Safe, list[str]]


@dataclass(frozen=True)
class Line:
    """A line of an entry: '+', '-' or ' ', a word that says what it is, and the text; '@' begins an entry."""

    sign: str
    label: str
    text: str


@dataclass(frozen=True)
class Listing:
    """Entries of a few lines each, below a title that opens and closes them; the report may show only the first."""

    title: Safe
    entries: list[list[Line]]
    open: bool = False


def flips(what: str, pairs: Sequence[Pair], rule: Rule, restless: Collection[str] = ()) -> Iterator[Listing]:
    """Answers that were right and are wrong now, and the reverse. `restless` ones flip when only the seed changes."""
    regressed = [new for old, new in pairs if old.hit(rule) and not new.hit(rule)]
    steady = [_flip(new, new, rule) for new in regressed if new.id not in restless]
    others = [_flip(new, new, rule) for new in regressed if new.id in restless]
    yield Listing(Safe(f"Regressed {what}"), steady, open=True)
    yield Listing(Safe(f"Regressed {what} that flip with the seed alone, too"), others)
    yield Listing(Safe(f"Fixed {what}"), [_flip(new, old, rule) for old, new in pairs if new.hit(rule) > old.hit(rule)])


def _flip(row: Outcome, wrong: Outcome, rule: Rule) -> list[Line]:
    given = wrong.answers.get(rule.system, "")
    shown = Line(" ", "request", row.request), Line("+", "expected", row.expected), Line("-", "given", given)
    return [Line("@", "", f"{row.id} {row.kind}".strip()), *(line for line in shown if line.text)]


def notes(base: str, head: str) -> list[Note]:
    """Changed files that a reviewer must know of."""
    changed = history.changed_files(base, head)
    named = {words: [name for name in changed if history.within(name, roots)] for words, roots in NOTED.items()}
    judging = next(iter(NOTED))
    held = {*history.listed("ls-tree", "-rz", "--name-only", "--full-tree", head)} - history.files(head).keys()
    links = {name for name in changed if name.count("/") <= 1 and name in held}
    named[judging] = sorted({*named[judging], *links, *filter(SHADOW.fullmatch, changed)})
    named[HELD] = [name for name in changed if name.endswith(".dvc")]
    return [(Safe(words), names) for words, names in named.items() if names]


def listings(base: str, head: str) -> Iterator[Listing]:
    for folder, words in (("data/raw", "Training rows"), ("data/test", "Test rows")):
        for sort, pairs in rows.between(base, head, folder).items():
            yield Listing(Safe(f"{words} {sort}"), [list(_row(*pair)) for pair in pairs])
    for title, path in TEXTS.items():
        yield Listing(Safe(title), list(_diff(base, head, path)))


def _row(before: Row | None, after: Row | None) -> Iterator[Line]:
    sides = [(sign, row) for sign, row in (("-", before), ("+", after)) if row]
    yield Line("@", "", sides[-1][1].id or "(no id)")
    for sign, row in sides:
        yield Line(sign, "request", rows.request(row))
        yield Line(sign, "answer", rows.answer(row))


def _diff(base: str, head: str, path: str) -> Iterator[list[Line]]:
    """The lines of a file or folder that differ. Git compares bytes: no attribute, driver or setting has a say."""
    options = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--text", "--unified=0")
    shown = history.git("diff", *options, base, head, "--", path).decode("utf-8", "replace").split("\n")
    inside, before = False, ""
    for line in shown:
        inside = line.startswith("@@ ") or (inside and not line.startswith("diff --git "))
        if line.startswith("@@ ") and (section := line.partition(" @@ ")[2]):
            yield [Line(" ", "", section)]
        elif line.startswith("--- ") and not inside:
            before = line[4:]
        elif line.startswith("+++ ") and not inside:
            yield [Line("@", "", before if line[4:] == "/dev/null" else line[4:])]
        elif line.startswith(("+", "-")) and inside and not HASH.fullmatch(line):
            yield [Line(line[0], "", line[1:])]
