"""Clean: no row twice, word for word or nearly, no characters that nobody sees, no control tokens of a chat format."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator

from stages.checklist.near import Neighbours
from stages.checklist.row import Checked, sound, texts

# Joiners and direction marks belong to emoji and to several scripts, tag characters to flags; everything else of the
# categories control, format and private has no place in a sentence. Unassigned ones may be newer than this Python.
SEEN = {*"\n\r\t\u200c\u200d\u200e\u200f", *map(chr, range(0xE0020, 0xE0080))}
BLANK = "\ufffd\u3164\u2800\u034f"  # the replacement character, and letters and marks without a shape
SAMPLE = 500  # knows a share to 4 points
UNSEEN = ("Cc", "Cf", "Co", "Cs")
# Role and turn markers of the chat formats in use (ChatML, Llama, Mistral, Gemma, Phi, T5 and their kin).
CHAT_TOKENS = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK)\]|<</?SYS>>|</?s>"
    r"|<(?:bos|eos|pad|unk|mask|extra_id_\d+)>|</?(?:think|tool_call|tool_response)>"
    r"|<(?:start|end)_of_turn>|<\uff5c[^\uff5c<>\n]{1,40}\uff5c>"
)


def check_characters(table: list[Checked]) -> None:
    """Refuse rows with characters that have no shape: what a person reads is then not what the model reads."""
    for checked in table:
        # In the text of an answer control characters stand escaped, so its values are looked at as well.
        values = "".join(value for example in checked.examples for _, value in texts(example.answer))
        for char in set(checked.text() + values):
            if char in BLANK or (char not in SEEN and unicodedata.category(char) in UNSEEN):
                checked.reasons["characters"] = f"U+{ord(char):04X} {unicodedata.name(char, 'control character')}"


def check_chat_tokens(table: list[Checked]) -> None:
    """Refuse rows that hold a control token as text: a template without sanitising would end the turn there."""
    for checked in table:
        if found := CHAT_TOKENS.search(checked.text()):
            checked.reasons["chat_tokens"] = f"{found[0]!r} is a control token of a chat format"


def check_duplicates(table: list[Checked]) -> None:
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


def check_near_duplicates(table: list[Checked], similarity: float) -> None:
    """Refuse a row whose request is nearly that of an earlier row with the same answers.

    Nearly the same request with another answer stays: that is what a model learns the difference from.
    """
    by_answers: dict[str, list[Checked]] = defaultdict(list)
    for checked in sound(table):
        by_answers[checked.answers()].append(checked)
    for alike in by_answers.values():
        if len(alike) > 1:
            refuse_near(alike, similarity)


def refuse_near(rows: list[Checked], similarity: float) -> None:
    known = Neighbours(similarity)
    kept: list[Checked] = []
    for checked in rows:
        if found := known.find_or_add(checked.asked()):
            place, likeness = found
            checked.reasons["near_duplicate"] = f"{likeness:.0%} like {kept[place].where}, with the same answer"
        else:
            kept.append(checked)


def templated(table: list[Checked], similarity: float) -> tuple[float, str]:
    """Return the share of requests that have another within `similarity`, and such a pair.

    Exact, for at most SAMPLE rows evenly spread over the table, each compared with all rows.
    """
    import numpy as np
    from rapidfuzz import fuzz, process

    requests = [checked.asked() for checked in sound(table)]
    spread = np.linspace(0, len(requests) - 1, min(SAMPLE, len(requests)))
    places = [int(place) for place in np.unique(spread.astype(int))]
    pairs = []
    for place in places:
        others = requests[:place] + requests[place + 1 :]
        if found := process.extractOne(requests[place], others, scorer=fuzz.ratio, score_cutoff=100 * similarity):
            pairs.append((found[1], requests[place], found[0]))
    share = len(pairs) / max(len(places), 1)
    return share, " | ".join(max(pairs)[1:]) if pairs else ""


def distinct_ngrams(table: list[Checked]) -> dict[str, float]:
    """distinct-n, the number of different n-grams of words over their total (Li et al. 2016, arXiv:1510.03055)."""
    requests = [checked.asked().split() for checked in sound(table)]
    figures = {}
    for size in (1, 2, 3):
        grams = Counter(gram for words in requests for gram in ngrams(words, size))
        figures[f"distinct_{size}"] = len(grams) / max(grams.total(), 1)
    return figures


def ngrams(words: list[str], size: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(size)), strict=False)
