"""Texts that are nearly the same: MinHash finds the candidates without comparing all pairs, edit distance decides."""

from typing import Any

PERMUTATIONS = 32
BANDS = (10, 3)  # bands and rows of the hash table: more bands find more candidates and cost time
GRAM = 3  # characters


class Neighbours:
    """A growing list of normalised texts that is asked for one within `similarity` (0 to 1) of another.

    Similarity is 1 minus the normalised Indel distance (rapidfuzz's `ratio`). MinHash with locality sensitive hashing
    (datasketch) is approximate: one pair in a hundred can be missed, but none is found that is not there.
    """

    def __init__(self, similarity: float) -> None:
        from datasketch import MinHashLSH

        self.similarity = similarity
        # One edit spoils three n-grams on either side, so sets differ far more than texts do: many short bands find 99%
        # of the pairs at a similarity of 0.95.
        self.index = MinHashLSH(params=BANDS, num_perm=PERMUTATIONS)
        self.texts: list[str] = []

    def find_or_add(self, text: str) -> tuple[int, float] | None:
        """Return place and similarity of the nearest text that is near enough; add the text when there is none."""
        from rapidfuzz import fuzz

        hashed = _hashed(text)
        scored = [(fuzz.ratio(text, self.texts[place]) / 100, -place) for place in self.index.query(hashed)]
        score, place = max(scored, default=(0.0, 0))
        if score >= self.similarity:
            return -place, score
        self.index.insert(len(self.texts), hashed)
        self.texts.append(text)
        return None


def _hashed(text: str) -> Any:
    from datasketch import MinHash
    from xxhash import xxh32_intdigest

    grams = {text[start : start + GRAM] for start in range(max(1, len(text) - GRAM + 1))}
    hashed = MinHash(num_perm=PERMUTATIONS, hashfunc=xxh32_intdigest)
    hashed.update_batch([gram.encode() for gram in grams])
    return hashed
