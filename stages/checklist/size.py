"""Size: what this many rows are good for."""

import math

TIERS = (
    (50, "fewer than 50: too few to change what the model does"),
    (100, "50-100: minimal behaviour change, a proof of concept only"),
    (500, "100-500: noticeable style adoption, simple format adherence"),
    (1000, "500-1000: reliable behaviour, production-ready for narrow tasks"),
    (5000, "1000-5000: strong domain adaptation, complex multi-turn interactions"),
)


def verdict(rows: int) -> str:
    """What this many training rows usually achieve."""
    return next((text for below, text in TIERS if rows < below), "5000 or more: deep expertise, comprehensive coverage")


def precision(rows: int) -> str:
    """Half the 95% interval of a rate near one half, measured on this many test rows."""
    return f"a rate of one half is known to ±{0.98 / math.sqrt(max(rows, 1)):.0%}"
