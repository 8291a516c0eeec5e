"""Turn a due date of the Task API's vocabulary into an ISO date: the model names the time, the API's edge resolves it.

A weekday is the next one after today. A period is due on its last day, a week ends on Sunday. Without an expression, an
answer is read from stdin and printed with its due date resolved. Exit status 2: there is no such date, or no answer.

\b
    python -m examples.task_api.due_date friday --today 2026-11-25
    python -m tools.ask "call Dana on Friday" | python -m examples.task_api.due_date --today 2026-11-25
"""

import re
import sys
from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

import click
from dateutil.relativedelta import FR, MO, SA, SU, TH, TU, WE, relativedelta

from stages.core import strict_json
from stages.core.cli import InputError
from stages.data import contract

WEEKDAYS = {"monday": MO, "tuesday": TU, "wednesday": WE, "thursday": TH, "friday": FR, "saturday": SA, "sunday": SU}
SUNDAY, END_OF_MONTH = relativedelta(weekday=SU), relativedelta(day=31)
WEEK, MONTH = relativedelta(weeks=1), relativedelta(months=1)
NAMED = {
    "today": relativedelta(),
    "tomorrow": relativedelta(days=1),
    "this_week": SUNDAY,
    "this_weekend": SUNDAY,
    "next_week": WEEK + SUNDAY,
    "next_weekend": WEEK + SUNDAY,
    "this_month": END_OF_MONTH,
    "next_month": MONTH + END_OF_MONTH,
    **{name: relativedelta(days=1, weekday=day) for name, day in WEEKDAYS.items()},
}


def resolve(expression: str, today: date) -> date:
    """The date that `expression` means on the day `today`. Raises InputError for anything else.

    `none` (take the date away) is not a date and is refused too.
    """
    try:
        if expression in NAMED:
            return today + NAMED[expression]
        if expression.startswith("next_") and (weekday := expression.removeprefix("next_")) in WEEKDAYS:
            return today + SUNDAY + NAMED[weekday]
        return _counted(expression, today)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{expression!r} is no due date as seen from {today}: {error}") from error


def _counted(expression: str, today: date) -> date:
    """The forms with numbers: in_3_days, day_15, 03-15, 2027-03-15. Raises ValueError."""
    if match := re.fullmatch(r"in_([1-9][0-9]?)_(days|weeks|months)", expression):
        step: dict[str, Any] = {match[2]: int(match[1])}
        return today + relativedelta(**step)
    if match := re.fullmatch(r"day_([1-9]|[12][0-9]|3[01])", expression):
        return _next(int(match[1]), today, (relativedelta(months=count) for count in range(13)))
    if match := re.fullmatch(r"([0-9]{2})-([0-9]{2})", expression):
        in_leap_year = date(2000, int(match[1]), int(match[2]))
        years = (relativedelta(years=count, month=in_leap_year.month) for count in range(9))
        return _next(in_leap_year.day, today, years)
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", expression):
        return date.fromisoformat(expression)
    raise ValueError("it is not in the vocabulary")


def _next(day: int, today: date, steps: Iterable[relativedelta]) -> date:
    """The first month at one of the steps that has such a day, today or later."""
    candidates = (today + step + relativedelta(day=day) for step in steps)
    return next(found for found in candidates if found.day == day and found >= today)


def with_iso_date(answer: dict[str, Any], today: date) -> dict[str, Any]:
    """The answer as the API gets it: `due_date` resolved, where there is one to resolve."""
    named = answer.get("due_date")
    return answer if named in (None, "none") else answer | {"due_date": resolve(str(named), today).isoformat()}


@click.command(help=__doc__)
@click.argument("expression", required=False)
@click.option(
    "--today",
    type=click.DateTime(["%Y-%m-%d"]),
    default=lambda: date.today().isoformat(),
    show_default="this day",
    help="the day of the request",
)
def main(expression: str | None, today: datetime) -> None:
    try:
        if expression is not None:
            return click.echo(resolve(expression, today.date()).isoformat())
        text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
        return click.echo(strict_json.compact(with_iso_date(contract.parse_answer(text), today.date())))
    except InputError as error:
        error.show()
        sys.exit(2)


if __name__ == "__main__":
    main()
