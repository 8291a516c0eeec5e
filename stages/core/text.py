"""When two texts count as the same: NFKC, case folded, punctuation, control characters and runs of space dropped."""

import unicodedata


class _Spaces(dict[int, str]):
    """A table for str.translate, filled as characters are met: what separates words becomes a space."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        return self.setdefault(code, " " if unicodedata.category(char)[0] in "PZC" else char)


_SPACES = _Spaces()


def normalise(text: str) -> str:
    """Return the text reduced to its words; symbols and emoji are words too, and a text of punctuation stays itself."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_SPACES).split() or folded.split())
