"""When two texts count as the same: NFKC, case folded, punctuation, control characters and runs of space dropped."""

import unicodedata


def normalise(text: str) -> str:
    """Return the text reduced to its words; symbols and emoji are words too, and a text of punctuation stays itself."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(" " if unicodedata.category(char)[0] in "PZC" else char for char in folded).split()
    return " ".join(words or folded.split())
