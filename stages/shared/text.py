"""When two texts count as the same: NFKC, case folded, punctuation and runs of space dropped."""

import re
import unicodedata


def normalise(text: str) -> str:
    """Return the text reduced to its words; a text without any word (an emoji) only folded, so it stays distinct."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"[^\W_]+", folded)) or " ".join(folded.split())
