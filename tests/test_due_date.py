"""The due dates of the Task API, from every form of the vocabulary, and the command."""

from datetime import date

import pytest
from click.testing import CliRunner, Result

from examples.task_api import due_date
from stages.core.cli import InputError

SUNDAY, WEDNESDAY = date(2026, 11, 22), date(2026, 11, 25)


@pytest.mark.parametrize(
    ("expression", "today", "expected"),
    [
        ("today", WEDNESDAY, "2026-11-25"),
        ("tomorrow", date(2026, 12, 31), "2027-01-01"),
        ("friday", WEDNESDAY, "2026-11-27"),
        ("wednesday", WEDNESDAY, "2026-12-02"),
        ("monday", WEDNESDAY, "2026-11-30"),
        ("tuesday", WEDNESDAY, "2026-12-01"),
        ("thursday", WEDNESDAY, "2026-11-26"),
        ("saturday", WEDNESDAY, "2026-11-28"),
        ("sunday", SUNDAY, "2026-11-29"),
        ("next_friday", WEDNESDAY, "2026-12-04"),
        ("next_monday", SUNDAY, "2026-11-23"),
        ("next_sunday", SUNDAY, "2026-11-29"),
        ("this_week", WEDNESDAY, "2026-11-29"),
        ("this_weekend", SUNDAY, "2026-11-22"),
        ("next_week", WEDNESDAY, "2026-12-06"),
        ("next_weekend", SUNDAY, "2026-11-29"),
        ("this_month", WEDNESDAY, "2026-11-30"),
        ("next_month", date(2026, 1, 31), "2026-02-28"),
        ("in_3_days", WEDNESDAY, "2026-11-28"),
        ("in_2_weeks", WEDNESDAY, "2026-12-09"),
        ("in_1_months", date(2026, 1, 31), "2026-02-28"),
        ("in_12_months", date(2028, 2, 29), "2029-02-28"),
        ("day_25", WEDNESDAY, "2026-11-25"),
        ("day_3", WEDNESDAY, "2026-12-03"),
        ("day_31", WEDNESDAY, "2026-12-31"),
        ("day_31", date(2026, 2, 1), "2026-03-31"),
        ("03-15", WEDNESDAY, "2027-03-15"),
        ("11-25", WEDNESDAY, "2026-11-25"),
        ("02-29", WEDNESDAY, "2028-02-29"),
        ("02-29", date(2096, 3, 1), "2104-02-29"),
        ("2027-03-03", WEDNESDAY, "2027-03-03"),
    ],
)
def test_resolves(expression: str, today: date, expected: str) -> None:
    assert due_date.resolve(expression, today).isoformat() == expected


@pytest.mark.parametrize(
    "expression",
    [
        "none",
        "someday",
        "",
        "in_0_days",
        "in_3_days\n",
        "day_32",
        "02-30",
        "00-15",
        "13-01",
        "2027-02-30",
        "next_today",
    ],
)
def test_refuses_what_is_no_date(expression: str) -> None:
    with pytest.raises(InputError):
        due_date.resolve(expression, WEDNESDAY)


@pytest.mark.parametrize("expression", ["tomorrow", "next_month", "in_2_weeks", "in_9_months", "day_3", "01-01"])
def test_refuses_a_date_after_the_last_one(expression: str) -> None:
    with pytest.raises(InputError, match="no due date as seen from 9999-12-31"):
        due_date.resolve(expression, date.max)


def run(*options: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(due_date.main, [*options, "--today", "2026-11-25"], input=stdin)


def test_the_command_resolves_one_expression() -> None:
    assert run("friday").stdout == "2026-11-27\n"


@pytest.mark.parametrize(
    ("answer", "resolved"),
    [
        ('{"title":"Café","due_date":"friday"}', '{"title":"Café","due_date":"2026-11-27"}'),
        ('{"due_date":null}', '{"due_date":null}'),
        ('{"due_date":"none"}', '{"due_date":"none"}'),
        ('{"filter":"all"}', '{"filter":"all"}'),
    ],
)
def test_an_answer_on_stdin_gets_its_date(answer: str, resolved: str) -> None:
    assert run(stdin=answer.encode()).stdout == resolved + "\n"


@pytest.mark.parametrize(
    "stdin", [b"", b"Sure!", b"[]", b'"\xff"', b'{"due_date":"someday"}', b'{"due_date":["friday"]}']
)
def test_no_answer_is_one_line_and_status_2(stdin: bytes) -> None:
    ran = run(stdin=stdin)
    assert (ran.exit_code, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
