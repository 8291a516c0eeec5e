"""Clean: no row twice, word for word or nearly, no characters that nobody sees, no control tokens of a chat format."""

import re
import unicodedata
from collections import Counter, defaultdict
from itertools import chain

from stages.checklist.row import CheckedRow, Table, own_words, sound, texts

# White space, joiners and direction marks (emoji and several scripts need them), and the tag characters of flags; any
# other control, format or private character has no place in a sentence. Unassigned ones may be newer than this Python.
ALLOWED = {*"\t\n\v\f\r\x85\u200c\u200d\u200e\u200f", *map(chr, range(0xE0020, 0xE0080))}
BLANK = "\ufffd\u3164\u2800\u034f"  # the replacement character, and letters and marks without a shape
UNSEEN = ("Cc", "Cf", "Co", "Cs")
GRAM, FEW = 5, 100  # letters of an n-gram; with so few texts comparing all is quicker than an index
SAMPLE = 500  # estimates a share to ±4 percentage points
# Role and turn markers of the chat formats in use (ChatML, Llama, Mistral, Gemma, Phi, T5 and their kin).
CHAT_TOKENS = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK)\]|<</?SYS>>|</?s>"
    r"|<(?:bos|eos|pad|unk|mask|extra_id_\d+)>|</?(?:think|tool_call|tool_response)>"
    r"|<(?:start|end)_of_turn>|<\uff5c[^\uff5c<>\n]{1,40}\uff5c>"
)


def check_characters(table: Table) -> None:
    """Refuse rows with characters that have no shape: what a person reads is then not what the model reads."""
    for checked in table:
        # In the text of an answer control characters stand escaped, so its values are searched as well.
        values = "".join(value for example in checked.examples for _, value in texts(example.answer))
        used = set(checked.text() + values) - ALLOWED
        if hidden := [char for char in used if char in BLANK or unicodedata.category(char) in UNSEEN]:
            char = min(hidden)
            checked.reasons["characters"] = f"U+{ord(char):04X} {unicodedata.name(char, 'control character')}"


def check_chat_tokens(table: Table) -> None:
    """Refuse rows that hold a control token as text: a template without sanitising would end the turn there."""
    for checked in table:
        if token := CHAT_TOKENS.search(checked.text()):
            checked.reasons["chat_tokens"] = f"{token[0]!r} is a control token of a chat format"


def check_duplicates(table: Table) -> None:
    """Refuse a row that adds nothing to the rows before it, and a second row of the same id."""
    seen: dict[tuple[str, str], str] = {}
    ids: dict[str, str] = {}
    for checked in sound(table):
        examples = [(example.prompt, example.key) for example in checked.examples]
        known = [seen[example] for example in examples if example in seen]
        if len(known) == len(examples):
            checked.reasons["duplicate"] = f"same request and answer as {known[-1]}"
        elif checked.row.id in ids:
            checked.reasons["duplicate"] = f"id {checked.row.id!r} is also at {ids[checked.row.id]}"
        else:
            for example in examples:
                seen.setdefault(example, checked.where)
            ids.setdefault(checked.row.id, checked.where)


def check_near_duplicates(table: Table, similarity: float) -> None:
    """Refuse a row whose request is nearly that of an earlier row with the same answers.

    Nearly the same request with another answer stays: that is what a model learns the difference from.
    """
    groups: dict[str, list[tuple[str, CheckedRow]]] = defaultdict(list)  # by answers: requests, and their rows
    rows = sound(table)
    for request, checked in zip(own_words([checked.requests() for checked in rows]), rows, strict=True):
        groups["\n".join(example.key for example in checked.examples)].append((request, checked))
    for group in groups.values():
        known = Known([request for request, _ in group], similarity)
        for request, checked in group:
            if nearest := near(request, known.candidates(request), similarity):
                checked.reasons["near_duplicate"] = f"{nearest}, with the same answer"
            else:
                known.add(request, checked.where)


class Known:
    """Texts with their places, found again by a text that is nearly like one of them.

    Texts of l and m letters are within a similarity s when at most (1 - s)(l + m) letters are added or dropped. Then m
    is at most l(2 - s)/s, and the letters are at most k = 2l(1 - s)/s. Each changes at most GRAM n-grams of a text. So
    in any order of all n-grams, the first k * GRAM + 1 of two such texts have one in common (the prefix filter of
    Chaudhuri et al. 2006, for edits as in Xiao et al. 2008). Rare ones come first here: what all texts of a template
    share leads nowhere. A text with fewer n-grams than that is compared with all. Nothing within s is missed.
    """

    def __init__(self, texts: list[str], similarity: float) -> None:
        self.changed = 2 * (1 - similarity) / max(similarity, 1e-9)
        self.counts = Counter(gram for text in texts for gram in grams(text) if len(texts) > FEW)
        self.texts: list[tuple[str, str]] = []  # each with its place
        self.short: list[int] = []
        # by an n-gram that comes first in a text, and by the text's length
        self.having: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))

    def first(self, text: str) -> tuple[list[str], int]:
        """The n-grams of a text that come first, none for a text that is compared with all, and its k."""
        most = int(self.changed * len(text) + 1e-9)
        if not self.counts or len(found := grams(text)) <= most * GRAM:
            return [], most
        return sorted(found, key=lambda gram: (self.counts[gram], gram))[: most * GRAM + 1], most

    def add(self, text: str, place: str) -> None:
        first, _ = self.first(text)
        for gram in first:
            self.having[gram][len(text)].append(len(self.texts))
        if not first:
            self.short.append(len(self.texts))
        self.texts.append((text, place))

    def candidates(self, text: str) -> dict[str, str]:
        """Texts to compare with, in the order in which they came, each with its place."""
        first, most = self.first(text)
        if not first:
            return dict(self.texts)
        lengths = range(len(text) - most, len(text) + most + 1)
        sizes = [self.having[gram] for gram in first if gram in self.having]
        alike = (size[length] for size in sizes for length in lengths if length in size)
        return dict(self.texts[number] for number in sorted({*self.short, *chain(*alike)}))


def grams(text: str) -> set[str]:
    return {text[start : start + GRAM] for start in range(len(text) - GRAM + 1)}


def near(request: str, known: dict[str, str], similarity: float) -> str:
    """How alike the nearest known request is, and where it stands; '' when none is within `similarity`."""
    from rapidfuzz import fuzz, process

    nearest = process.extractOne(request, known.keys(), scorer=fuzz.ratio, score_cutoff=100 * similarity)
    return f"{nearest[1]:.0f}% like {known[nearest[0]]}" if nearest else ""


def templated(table: Table, similarity: float) -> tuple[float, str]:
    """The share of requests that have another one within `similarity`, and such a pair; of SAMPLE or more, if many."""
    from rapidfuzz import fuzz, process

    requests = own_words([checked.requests() for checked in sound(table)])
    sample = range(0, len(requests), max(len(requests) // SAMPLE, 1))
    pairs = []
    for place in sample:
        others = requests[:place] + requests[place + 1 :]
        if nearest := process.extractOne(requests[place], others, scorer=fuzz.ratio, score_cutoff=100 * similarity):
            pairs.append((nearest[1], requests[place], nearest[0]))
    return len(pairs) / max(len(sample), 1), " | ".join(max(pairs)[1:]) if pairs else ""
