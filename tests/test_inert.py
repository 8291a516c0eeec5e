"""Whatever anybody writes, the report keeps its shape: hostile text neither changes its structure nor directs a log."""

import re
import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from conftest import ROOT
from markdown_it import MarkdownIt

from review import inert, report
from review.changes import Line, Listing
from review.compare import Check, Metric
from review.inert import Safe
from stages.scores.stats import Comparison
from versions.record import Problem

HOSTILE = {
    "words": "@octo-org closes #1 :rocket: **bold** _it_ ~~gone~~ &lt;b&gt; &#64;someone",
    "links": "![pixel](https://t.example/p.png) ![pixel][p] [log](javascript:alert(1)) <https://t.example>\n\n[p]: /x",
    "blocks": "# Approved\n===\nby all\n---\n- [x] reviewed\n1. two\n> [!IMPORTANT]\n~~~\ny\n~~~",
    "table": "a | b\n---|---\n1 | 2 \\| x \\\\| y",
    "backticks": "`a` ``b`` ```c``` $`x`$ ```math\nz\n``` `",
    "closing fence": "x\n```\n# out\n```diff",
    "tags": "</code></pre></details></summary></td></table><h2>ok</h2><script>x</script><img src=x onerror=x><!-- x",
    "template": "{{ 7 * 7 }} {% raw %} ${{ secrets.TOKEN }}",
    "log command": "::error file=a::b\n::set-output name=x::y",
    "old log command": "x ##[error]b ##[add-mask]c",
    "terminal": "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J\rHIDDEN\b\b\v\f\x00",
    "directions": "\u202ekcab\u202c \u2066x\u2069 \u200fz\u061c",
    "invisible": "a\u200bb\u200c\u200d\u2060\ufeff\u00ad\u3164\u2800\U000e0041\xa0\u2003\ufe00\U000e0100",
    "line separators": "a\u2028b\u2029c\x85d",
    "stacked marks": "z" + "\u0301" * 60,
    "half a pair": "a\udcff\ud800",
    "blanks": "   ",
    "long": "x" * 12_000,
}
RESULT = Comparison(40, 0.5, 0.6, 0.1, 0.0, 0.2, 0.1, 5, 1, "no evidence", 0.2)


def made(text: str, **changed: Any) -> report.Report:
    """A report with every part in it, and `text` wherever one holds text from outside."""
    metric = Metric(text, text, text, RESULT, (0.0, 0.1))
    entries = [[Line("@", "", text), Line(" ", "request", text), Line("+", "", text), Line("-", "given", text)]]
    whole = report.Report(
        base=text,
        head=text,
        problems=[Problem(text, text)] * 2,
        refused=text,
        left_out=1,
        noise=Safe("No noise."),
        notes=[(Safe("Changed"), [text, text])],
        metrics=[metric],
        likelihood=None,
        moved=[metric],
        kinds=3,
        checks=[Check(text, text, text, text, holds=False)] * 2,
        listings=[Listing(Safe("Answers"), entries, open=True), Listing(Safe("Rows"), entries)],
    )
    return replace(whole, **changed)


VARIANTS: dict[str, dict[str, Any]] = {
    "fails by a problem": {},
    "fails by a check": {"problems": []},
    "refused": {"problems": [], "checks": []},
    "holds": {"problems": [], "checks": [], "refused": ""},
}


def skeleton(markdown: str) -> list[tuple[str, str, str]]:
    """The structure of a document with the project's own words, without what stands in code."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = [inner for token in parser.parse(markdown) for inner in [token, *(token.children or [])]]
    code = ("fence", "code_inline", "inline")
    return [(token.type, token.info, "" if token.type in code else token.content) for token in tokens]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", HOSTILE)
def test_text_changes_nothing_but_itself(name: str, variant: str) -> None:
    plain, hostile = (report.render(made(text, **VARIANTS[variant])) for text in ("plain", HOSTILE[name]))
    assert skeleton(hostile) == skeleton(plain)
    assert hostile.count("\n") == plain.count("\n")
    for line in hostile.split("\n"):
        assert not line.lstrip().startswith("::")
        assert "##[" not in line
        assert all(unicodedata.category(char)[0] != "C" and char not in inert.BLANK for char in line)
        assert not re.search(r"[\u0300-\u036f]{3}", line)
    hostile.encode("utf-8")


@pytest.mark.parametrize(
    ("variant", "status", "title"),
    [
        ("fails by a problem", 1, "## ❌ The gate fails: `plain`: `plain`, and 3 more\n"),
        ("fails by a check", 1, "## ❌ The gate fails: `plain` is `plain`; `plain`, and 1 more\n"),
        ("refused", 2, "## ⚪ Not compared: `plain`"),
        ("holds", 0, "## ✅ The gate holds: `plain` `plain` 0.500 → 0.600, no evidence of a change. **The test set"),
    ],
)
def test_title_and_exit_status_say_the_verdict(variant: str, status: int, title: str) -> None:
    found = made("plain", **VARIANTS[variant])
    assert (found.status, report.render(found).startswith(title)) == (status, True)


@pytest.mark.parametrize("text", ["word", "\U000e0041" * 500, "😀" * 500, "x" * 500])
def test_a_report_of_any_size_fits_and_says_what_it_leaves_out(text: str) -> None:
    entries = [[Line("@", "", text), Line("-", "given", text)]] * 3000
    listing, many = Listing(Safe("Answers"), entries), [Problem(text, text)] * 3000
    whole = made(text, listings=[listing] * 20, problems=many, notes=[(Safe("Changed"), [text] * 3000)] * 3)
    shown = report.render(whole)
    assert len(shown.encode()) <= report.LONGEST < 65_000  # GitHub takes 65,536 characters
    assert re.search(r"… and \d+ more, not shown", shown)
    assert shown.startswith("## ❌ The gate fails: ")
    assert shown.count("```") == 40
    assert skeleton(shown)[-1][0] != "fence"


def test_lists_are_as_long_as_fits() -> None:
    entries = [[Line("@", "", str(number))] for number in range(25)]
    shown = report.render(made("plain", listings=[Listing(Safe("Answers"), entries)]))
    assert "@@ 19 @@" in shown
    assert "@@ 20 @@" not in shown
    assert "… and 5 more, not shown" in shown


def test_what_is_not_marked_is_code_and_what_is_cut_says_so() -> None:
    assert inert.finalize("a|b`<") == "`a\\x7cb\\x60\\x3c`"
    assert inert.finalize(Safe("**a**")) == "**a**"
    assert (inert.finalize(7), inert.finalize(0.12345)) == (7, "0.123")
    assert inert.line("x" * 401) == "x" * 400 + "…"
    assert inert.line("x" * 400) == "x" * 400
    assert inert.line("|" * 101) == "\\x7c" * 100 + "…"
    assert inert.line("\u115f\u3164\u2800\ufe00\U000e0100") == r"\u115f\u3164\u2800\ufe00\U000e0100"
    assert inert.line("\u0e01\u0e34\u0e48\u0e07") == "\u0e01\u0e34\u0e48\u0e07"  # Thai: two marks over a letter


def test_the_template_joins_no_texts() -> None:
    """A joined text is not marked, so it would come out as code; none of it may be marked by hand but our own words."""
    template = (ROOT / "review/report.md.j2").read_text(encoding="utf-8")
    assert "~" not in template
    assert set(re.findall(r"\{\{ ([^{}]*?) \| own \}\}", template)) <= {"first.result.evidence", "result.evidence"}
