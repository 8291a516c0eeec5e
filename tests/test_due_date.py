from datetime import date

import pytest

from tools import due_date

SUNDAY, WEDNESDAY = date(2026, 11, 22), date(2026, 11, 25)


@pytest.mark.parametrize(
    ("expression", "today", "expected"),
    [
        ("today", WEDNESDAY, "2026-11-25"),
        ("tomorrow", date(2026, 12, 31), "2027-01-01"),
        ("friday", WEDNESDAY, "2026-11-27"),
        ("wednesday", WEDNESDAY, "2026-12-02"),
        ("monday", WEDNESDAY, "2026-11-30"),
        ("sunday", SUNDAY, "2026-11-29"),
        ("next_friday", WEDNESDAY, "2026-12-04"),
        ("next_monday", SUNDAY, "2026-11-23"),
        ("this_week", WEDNESDAY, "2026-11-29"),
        ("this_weekend", SUNDAY, "2026-11-22"),
        ("next_week", WEDNESDAY, "2026-12-06"),
        ("next_weekend", WEDNESDAY, "2026-12-06"),
        ("this_month", WEDNESDAY, "2026-11-30"),
        ("next_month", date(2026, 1, 31), "2026-02-28"),
        ("in_3_days", WEDNESDAY, "2026-11-28"),
        ("in_2_weeks", WEDNESDAY, "2026-12-09"),
        ("in_1_months", date(2026, 1, 31), "2026-02-28"),
        ("in_12_months", date(2028, 2, 29), "2029-02-28"),
        ("day_25", WEDNESDAY, "2026-11-25"),
        ("day_3", WEDNESDAY, "2026-12-03"),
        ("day_31", WEDNESDAY, "2026-12-31"),
        ("03-15", WEDNESDAY, "2027-03-15"),
        ("11-25", WEDNESDAY, "2026-11-25"),
        ("02-29", WEDNESDAY, "2028-02-29"),
        ("2027-03-03", WEDNESDAY, "2027-03-03"),
    ],
)
def test_resolves(expression: str, today: date, expected: str) -> None:
    assert due_date.resolve(expression, today).isoformat() == expected


@pytest.mark.parametrize(
    "expression", ["none", "someday", "", "in_0_days", "day_32", "02-30", "2027-02-30", "next_today"]
)
def test_refuses(expression: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        due_date.resolve(expression, WEDNESDAY)
