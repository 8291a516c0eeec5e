"""Turn a due date of the Task API's vocabulary into an ISO date: the model names the time, the API's edge resolves it.

A weekday is the next one after today. A period is due on its last day, a week ends on Sunday.
"""

import calendar
import re
from datetime import date, timedelta

WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]


def resolve(expression: str, today: date) -> date:
    """Return the date that `expression` means on the day `today`. Raises ValueError for anything else.

    `none` (take the date away) is not a date and is refused too.
    """
    end_of_week = today + timedelta(days=6 - today.weekday())
    fixed = {
        "today": today,
        "tomorrow": today + timedelta(days=1),
        "this_week": end_of_week,
        "this_weekend": end_of_week,
        "next_week": end_of_week + timedelta(days=7),
        "next_weekend": end_of_week + timedelta(days=7),
        "this_month": _end_of_month(today),
        "next_month": _end_of_month(_add_months(today.replace(day=1), 1)),
    }
    if expression in fixed:
        return fixed[expression]
    if expression in WEEKDAYS:
        return today + timedelta(days=(WEEKDAYS.index(expression) - today.weekday() - 1) % 7 + 1)
    if expression.startswith("next_") and expression[5:] in WEEKDAYS:
        return end_of_week + timedelta(days=1 + WEEKDAYS.index(expression[5:]))
    return _counted(expression, today)


def _counted(expression: str, today: date) -> date:
    """The forms with numbers: in_3_days, day_15, 03-15, 2027-03-15."""
    if match := re.fullmatch(r"in_([1-9][0-9]?)_(days|weeks|months)", expression):
        count = int(match[1])
        if match[2] == "months":
            return _add_months(today, count)
        return today + timedelta(days=count * (7 if match[2] == "weeks" else 1))
    if match := re.fullmatch(r"day_([1-9]|[12][0-9]|3[01])", expression):
        return _next_day_of_month(int(match[1]), today)
    if match := re.fullmatch(r"(\d{2})-(\d{2})", expression):
        return _next_day_of_year(int(match[1]), int(match[2]), today)
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", expression):
        return date.fromisoformat(expression)
    raise ValueError(f"{expression!r} is not a due date")


def _end_of_month(day: date) -> date:
    return day.replace(day=calendar.monthrange(day.year, day.month)[1])


def _add_months(day: date, months: int) -> date:
    """The same day so many months later, or the last one of a shorter month."""
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    return date(year, month + 1, min(day.day, calendar.monthrange(year, month + 1)[1]))


def _next_day_of_month(number: int, today: date) -> date:
    """The next month, this one included, that has such a day today or later."""
    for months in range(13):
        first = _add_months(today.replace(day=1), months)
        if number <= calendar.monthrange(first.year, first.month)[1] and first.replace(day=number) >= today:
            return first.replace(day=number)
    raise ValueError(f"no month has a day {number}")


def _next_day_of_year(month: int, day: int, today: date) -> date:
    """The next such date, today included; February 29 waits for a leap year."""
    for year in range(today.year, today.year + 9):
        try:
            found = date(year, month, day)
        except ValueError:
            continue
        if found >= today:
            return found
    raise ValueError(f"no year has a {month:02}-{day:02}")
