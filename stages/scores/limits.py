"""A limit that a figure must keep; judged here once, and printed as it is by the report."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limit:
    """`value` with its 95% interval, from `n` rows, against the most that is tolerated; more is worse."""

    what: str
    value: float
    low: float
    high: float
    limit: float
    n: int

    @property
    def holds(self) -> bool:
        """Broken only where the whole interval lies beyond the limit."""
        return self.low <= self.limit

    def entry(self) -> dict[str, Any]:
        """As written to metrics/detail."""
        return {**vars(self), "holds": self.holds}

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "broken"
        return f"{self.what}: {self.value:.3f} [{self.low:.3f}, {self.high:.3f}], limit {self.limit}: {verdict}"
