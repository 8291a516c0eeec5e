"""What requests cost at the user's own prices, and from how many a day on a tuned model costs less than a prompt.

A hosted model is paid by the token and costs nothing while nobody asks. A tuned model needs a machine, paid by the
hour, and every version of it has to be prepared and trained. Prices may be in any currency, the same everywhere.
"""

import math
from dataclasses import dataclass
from typing import Literal

from tools.advising.evidence import Own, Speed


def by_tokens(own: Own, speed: Speed) -> float | None:
    """The price of 1,000 requests to a hosted model, all tokens at the full price; None: a price is not known."""
    if own.prompt_price is None or own.answer_price is None:
        return None
    return speed.prompt_tokens * own.prompt_price + speed.answer_tokens * own.answer_price


def by_machine(own: Own, speed: Speed) -> float | None:
    """The price of 1,000 requests on the measured machine, kept busy all the time; None: the price is not known."""
    return None if own.machine_hour_price is None else 1000 * _each(own.machine_hour_price, speed)


def _each(hour_price: float, speed: Speed) -> float:
    return hour_price / (3600 * speed.answers_per_second)


@dataclass(frozen=True)
class Comparison:
    """Daily costs of prompting and of the tuned model.

    `prompted`, `tuned`: the price of one request, of the tuned one on a busy machine. `version`: training and
    preparation per day of a version's life. `machine`: a machine per day, 0 when it is paid only while it answers;
    `capacity`: the requests per day that it can answer.
    """

    basis: Literal["tokens", "machine"]
    prompted: float
    tuned: float
    version: float
    machine: float
    capacity: float

    def prompted_a_day(self, requests: float) -> float:
        return requests * self.prompted

    def tuned_a_day(self, requests: float) -> float:
        if not self.machine:
            return self.version + requests * self.tuned
        return self.version + self.machine * max(1, math.ceil(requests / self.capacity))

    def break_even(self) -> int | None:
        """The fewest requests a day at which the tuned model costs no more; None: it costs more at any volume."""
        saving = self.prompted - self.tuned
        if saving <= 0:
            return None
        if not self.machine:
            return math.ceil(self.version / saving)
        # So many machines, all of them busy, save what a version costs; the last one need not be busy all day.
        machines = max(1, math.ceil(self.version / (saving * self.capacity)))
        return math.ceil((self.version + machines * self.machine) / self.prompted)


def missing(own: Own) -> list[str]:
    """The names of the prices without which nothing can be compared."""
    prices = {"prompt_price": own.prompt_price, "answer_price": own.answer_price}
    half = [name for name, price in prices.items() if price is None]
    return [*(["machine_hour_price"] if own.machine_hour_price is None else []), *(half if len(half) == 1 else [])]


def compare(own: Own, prompted: Speed, tuned: Speed, training_seconds: float) -> Comparison | None:
    """Compare with a hosted model where token prices are known, otherwise with prompting on the same machine.

    On machines of one's own both systems count as busy all day: one that stands idle costs the same whoever does not
    ask it. None where a price is `missing`.
    """
    price, hosted = own.machine_hour_price, by_tokens(own, prompted)
    if price is None or missing(own):
        return None
    hours = own.machine_hours_a_day
    return Comparison(
        basis="machine" if hosted is None else "tokens",
        prompted=_each(price, prompted) if hosted is None else hosted / 1000,
        tuned=_each(price, tuned),
        version=(price * training_seconds / 3600 + (own.preparation_cost or 0)) / own.lifetime_days,
        machine=0.0 if hosted is None else price * hours,
        capacity=tuned.answers_per_second * 3600 * hours,
    )
