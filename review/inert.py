"""Make text from outside harmless: rows, answers, file names and figures that anybody may have written.

What the template prints goes through `finalize`: numbers and `Safe` text as they are, the rest in a code span, on one
line, with nothing that ends it, hides in it, moves other text, or is a command to a terminal or a runner's log.
"""

import unicodedata
from collections.abc import Iterator
from typing import Any

LONGEST = 400  # characters of one text in the report
BLANK = set("\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5")  # letters and symbols without ink
# Variation selectors, which change how a character looks, if at all.
SELECTORS = (range(0x180B, 0x1810), range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))
BLANK |= {chr(code) for codes in SELECTORS for code in codes}
STACKED = 2  # marks over one letter; more is no language


class Safe(str):
    """The project's own words, or text that was made inert."""

    __slots__ = ()


def line(text: str) -> Safe:
    """The text on one line of a fenced block, cut where it is long."""
    shown = "".join(_visible(text[:LONGEST])).replace("##[", "#\\x23[").replace("::", ":\\x3a")
    return Safe(shown[:LONGEST] + ("…" if len(shown) > LONGEST or len(text) > LONGEST else ""))


def _visible(text: str) -> Iterator[str]:
    stacked = 0
    for char in text:
        stacked = stacked + 1 if unicodedata.category(char)[0] == "M" else 0
        if char in "`|<":
            yield f"\\x{ord(char):02x}"
        elif not char.isprintable() or char in BLANK or stacked > STACKED:
            yield char.encode("unicode_escape").decode()
        else:
            yield char


def finalize(value: Any) -> Any:
    """For jinja2: rates get three digits, and text that is not marked as safe becomes a code span."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return value if isinstance(value, (Safe, int)) else f"`{line(str(value)).strip() or ' '}`"
