"""Whatever a model says, a report keeps its shape: hostile text changes neither the Markdown's structure nor a log."""

import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from markdown_it import MarkdownIt

from tools import report
from tools.reporting import document, render
from tools.reporting.revision import CannotCompareError

LONG = 12_000
HOSTILE = {
    "mention": "thanks @octo-org/reviewers and @someone",
    "mail": "write to root@example.org",
    "image": "![pixel](https://tracker.example/p.png?id=7)",
    "reference image": "![pixel][p]\n\n[p]: https://tracker.example/p.png",
    "link": "[see the log](javascript:alert(1))",
    "bare address": "go to https://tracker.example/x or www.tracker.example",
    "angle address": "<https://tracker.example>",
    "issue": "closes #1, fixes octo/repo#2, GH-3",
    "commit": "see 0123456789abcdef0123456789abcdef01234567",
    "emoji": ":white_check_mark: :rocket:",
    "heading": "# Approved\n## by all",
    "setext heading": "Approved\n===\nby all\n---",
    "list": "- one\n1. two\n+ three",
    "task": "- [x] reviewed",
    "quote": "> a maintainer wrote",
    "alert": "> [!IMPORTANT]\n> merge now",
    "emphasis": "**bold** _it_ ~~gone~~",
    "rule": "***\n___",
    "table": "a | b\n---|---\n1 | 2",
    "pipe after backslash": "\\| x \\\\| y",
    "backticks": "`a` ``b`` ```c``` `",
    "closing fence": "x\n```\n# out\n```diff",
    "tildes": "~~~\ny\n~~~",
    "diagram": "```mermaid\npie\n```",
    "formula": "$`x`$ $$y$$ ```math\nz\n```",
    "closing tags": "</code></pre></details></td></table><h2>ok</h2>",
    "script": "<script>alert(1)</script><style>*{display:none}</style><img src=x onerror=alert(1)>",
    "entities": "&lt;b&gt; &#64;someone &amp;",
    "comment": "<!-- lockstep report --> <!-- x",
    "processing": "<?php ?> <![CDATA[x]]>",
    "footnote": "text[^1]\n\n[^1]: note",
    "suggestion": "```suggestion\nrm -rf /\n```",
    "template": "{{ 7 * 7 }} {% raw %} ${{ secrets.TOKEN }}",
    "log command": "::error file=a::b\n::set-output name=x::y",
    "old log command": "x ##[error]b ##[add-mask]c",
    "environment file": "A=1\nGITHUB_TOKEN<<EOF\nx\nEOF",
    "terminal colours": "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J",
    "carriage return": "harmless\rHIDDEN\b\b\v\f",
    "directions": "\u202ekcab\u202c \u2066x\u2069 \u200fz\u061c",
    "invisible": "a\u200bb\u200c\u200d\u2060\ufeff\u00ad\u3164\u2800",
    "tags": "x\U000e0041\U000e0042",
    "line separators": "a\u2028b\u2029c\x85d",
    "stacked marks": "z" + "\u0301" * 60,
    "odd spaces": "a\u00a0b\u2003c\u3000d",
    "nul": "a\x00b",
    "blanks": "   ",
    "nothing": "",
    "long": "x" * LONG,
}
FIGURES = {"n": 40, "before": 0.5, "after": 0.6, "difference": 0.1, "low": 0.0, "high": 0.2, "p_value": 0.1}
METRIC = {
    **FIGURES,
    "system": "tuned",
    "metric": "exact_match",
    "fixed": 5,
    "broken": 1,
    "evidence": "no evidence",
    "detectable": 0.2,
}

RETENTION: dict[str, Any] = {"n": 100, "base": 0.6, "tuned": 0.5, "difference": -0.1, "low": -0.2, "high": 0.0}
RETENTION |= {"ratio": 1.2, "ratio_low": 1.1, "ratio_high": 1.3, "tolerated_drop": 0.1, "tolerated_ratio": 2.0}
RETENTION |= {"items": "a" * 64, "text": "b" * 64}
MEMORISATION = {"train_n": 50, "train": 0.2, "test_n": 50, "test": 0.1, "difference": 0.1, "low": 0.0, "high": 0.2}
MEMORISATION |= {"tolerated": 0.05}


def listed(*items: Any) -> dict[str, Any]:
    return {"total": len(items), "items": list(items)}


def data(text: str) -> dict[str, Any]:
    """A report with every part in it, and `text` wherever a report holds text from outside."""
    name, long = text[:200], text[:500]
    change = {"name": name, "before": long, "after": long}
    row = {"id": name, "request": long, "answer": long}
    field = {"name": name, "expected": name or "x", "given": name or "x"}
    flip: dict[str, Any] = dict.fromkeys(("request", "expected", "before", "after"), long)
    flip |= {"id": name, "kind": name, "after_right": True, "fields": [field]}
    rows = {sort: listed(row) for sort in document.SORTS} | {"before": 1, "after": 2}
    rows["relabelled"] = listed({**row, "was": long})
    rule = {"system": "tuned", "metric": "exact_match", "direction": "higher", "check": "floor", "limit": 0.5}
    found: dict[str, Any] = {
        "version": 1,
        "base": {"name": name or "x", "commit": "a" * 40},
        "head": {"name": name or "x", "commit": "b" * 40},
        "refused": "",
        "rules_changed": True,
        "problems": listed({"file": name, "reason": long}),
        "comparison": {
            "shared": 40,
            "only_before": 1,
            "only_after": 2,
            "edited": 3,
            "scorer": [name],
            "metrics": [dict(METRIC)],
            "flips": {"broken": listed({**flip, "after_right": False}), "fixed": listed(flip)},
            "slices": [{**METRIC, "kind": name}],
            "slices_seen": 2,
            "confidence": 0.95,
            "rules": [{**rule, "low": 0.4, "high": 0.6, "holds": True}],
        },
        "kept": {
            "retention": {"before": None, "after": dict(RETENTION)},
            "memorisation": {"before": {**MEMORISATION, "ids": []}, "after": {**MEMORISATION, "ids": [name, name]}},
        },
        "changes": {
            "data": {"raw": rows, "test": rows},
            **{key: listed(change) for key in ("pointers", "checklist", "params", "base_model", "libraries", "pins")},
            "contract": listed("-" + name[:150], "+" + name[:150], " " + name[:150]),
            "code": listed(name),
            "run": [change],
            "curve": {"before": [3.0, 2.0, 1.0], "after": [3.0, 1.0, 0.5]},
        },
    }
    return report.checked(found | {"status": document.status(found)})


def shown(text: str) -> str:
    found = data(text)
    return render.markdown(document.title(found), document.blocks(found))


def skeleton(markdown: str) -> list[tuple[str, str, str]]:
    """The structure of a document, with the own words in it and without what stands in code."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = [inner for token in parser.parse(markdown) for inner in [token, *(token.children or [])]]
    code = ("fence", "code_inline", "inline")
    return [(token.type, token.info, "" if token.type in code else token.content) for token in tokens]


class Shape(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[Any] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, attrs))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(tag)

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment", data))


each = pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))


@each
def test_markdown_keeps_its_structure(text: str) -> None:
    assert skeleton(shown(text)) == skeleton(shown("plain"))


@each
def test_nothing_unseen_or_directing_is_printed(text: str) -> None:
    printed = shown(text).replace("\n", "")
    assert [hex(ord(c)) for c in printed if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn")] == []
    assert not render.INVISIBLE & set(printed)


@each
def test_no_line_is_a_command_to_a_runner(text: str) -> None:
    for output in (shown(text), report.as_json(data(text))):
        assert not any(line.lstrip().startswith("::") for line in output.split("\n"))
        assert "##[" not in output


@each
def test_only_the_first_line_is_the_mark_of_the_comment(text: str) -> None:
    assert [number for number, line in enumerate(shown(text).split("\n")) if render.MARK in line] == [0]


@each
def test_the_page_keeps_its_tags(text: str) -> None:
    found, plain = (data(value) for value in (text, "plain"))
    pages = [render.page(document.title(each), document.blocks(each)) for each in (found, plain)]
    assert Shape(pages[0]).found == Shape(pages[1]).found


def test_the_page_asks_for_nothing_and_may_run_nothing() -> None:
    found = data("plain")
    page = render.page(document.title(found), document.blocks(found))
    tags = [tag for tag in Shape(page).found if isinstance(tag, tuple)]
    assert not {"script", "link", "img", "iframe", "object", "form", "a"} & {tag for tag, _ in tags}
    assert not any(name in ("src", "href", "style") or name.startswith("on") for _, attrs in tags for name, _ in attrs)
    assert "default-src 'none'" in page
    assert page.count("<polyline") == 2


def many(count: int) -> dict[str, Any]:
    found = data("y" * 400)
    broken = found["comparison"]["flips"]["broken"]
    broken["items"] = broken["items"] * 150
    broken["total"] = count
    return report.checked(found)


def test_a_comment_is_cut_to_what_github_takes_and_counts_what_it_left_out() -> None:
    found = many(400)
    text = render.markdown(document.title(found), document.blocks(found))
    assert len(text) <= render.LONGEST == 65_000
    printed = text.count("\n+ before")
    assert 0 < printed < 150
    assert f"… and {400 - printed} more, not shown." in text


def test_the_order_is_that_of_a_reviewer() -> None:
    text = shown("plain")
    parts = [
        "## ❌",
        "### Metrics",
        "### Answers",
        "### Kept",
        "### Data",
        "### Settings",
        "### How the runs",
        "### The gate",
    ]
    assert sorted(parts, key=text.index) == parts


def test_the_curve_is_drawn_without_exponents_which_mermaid_cannot_read() -> None:
    chart = render.Chart("Loss", [3.0, 1e-9, 2e-7], [3.0, 1e-5, 1e8])
    lines = render.markdown_block(chart, 1)
    assert [line for line in lines if line.startswith("  line")] == [
        "  line [0.00000, 0.00000]",
        "  line [0.00001, 100000000.00000]",
    ]
    assert lines[0] == "```mermaid"


def test_no_curve_no_chart() -> None:
    assert render.markdown_block(render.Chart("Loss", [], []), 1) == []


def test_differing_fields_are_marked() -> None:
    fields = [
        {"name": "due_date", "given": '"monday"', "expected": '"friday"'},
        {"name": "title", "given": "", "expected": '"Milk"'},
        {"name": "reason", "given": '"unclear"', "expected": ""},
    ]
    assert document.differences(fields) == ['due_date is "monday", not "friday"', "without title; with reason"]


@pytest.mark.parametrize(
    "forge",
    [
        lambda d: d.update(markdown="# hello"),
        lambda d: d["base"].update(commit="HEAD; rm -rf /" + "0" * 40),
        lambda d: d["head"].update(name="x" * 5000),
        lambda d: d["comparison"]["metrics"][0].update(evidence="<b>better</b>"),
        lambda d: d["comparison"]["metrics"][0].update(before="0.5"),
        lambda d: d["comparison"]["metrics"][0].update(note="x"),
        lambda d: d["changes"]["curve"].update(before=[1.0] * 1000),
        lambda d: d["comparison"]["flips"]["broken"]["items"][0].update(request="x" * 100_000),
        lambda d: d.update(status="pass"),
        lambda d: d.pop("changes"),
        lambda d: d.pop("kept"),
        lambda d: d["kept"]["memorisation"]["after"].update(ids=["x"] * 21),
        lambda d: d["kept"]["retention"]["after"].update(base="0.5"),
    ],
)
def test_a_forged_report_is_refused(forge: Callable[[dict[str, Any]], None]) -> None:
    found = data("plain")
    forge(found)
    with pytest.raises(CannotCompareError, match="not a report"):
        report.checked(found)
