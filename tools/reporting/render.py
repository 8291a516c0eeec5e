"""Blocks to Markdown for a GitHub comment and a terminal, and to a page of HTML. The one place where text is escaped.

In: blocks, whose `str` parts are this project's own words and whose `Data` parts are anything: model answers, rows,
file names. Data comes out inert: on one line, in a code span or fence, invisible and directing characters spelt out.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST = 65_000  # GitHub takes 65,536 characters in a comment
MARK = "<!-- lockstep report -->"  # first line of the comment, by which the next run finds it
INVISIBLE = set("\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5")  # letters and symbols without ink
STACKED = 2  # marks over one letter; more is no language


@dataclass(frozen=True)
class Data:
    """Text from outside."""

    text: str


Inline = str | Data | tuple["str | Data", ...]


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    parts: tuple[str | Data, ...]


@dataclass(frozen=True)
class Table:
    """`hidden` rows are not among `rows` any more; they are counted below it."""

    header: tuple[str, ...]
    rows: Sequence[Sequence[Inline]]
    hidden: int = 0


@dataclass(frozen=True)
class Line:
    """A line of a diff: '+', '-', '!' or ' ', a word that says what it is, and the data; '@' begins an entry."""

    sign: str
    label: str
    text: str


@dataclass(frozen=True)
class Diff:
    """Entries of a few lines each, below a title that opens and closes them."""

    title: str
    entries: Sequence[Sequence[Line]]
    hidden: int = 0
    open: bool = False


@dataclass(frozen=True)
class Chart:
    """Two curves over the same course; either may be empty."""

    title: str
    before: Sequence[float]
    after: Sequence[float]


Block = Heading | Paragraph | Table | Diff | Chart


def visible(text: str) -> str:
    """The text on one line, with every character that is not seen, or that moves others, spelt as \\uXXXX.

    `##[`, and `::` at the beginning, are broken up as well: GitHub's runner takes them for commands in a log.
    """
    found, stack = [], 0
    for char in text:
        category = unicodedata.category(char)
        stack = stack + 1 if category[0] == "M" else 0
        hidden = category[0] == "C" or category in ("Zl", "Zp") or (category == "Zs" and char != " ")
        found.append(_spelt(char) if hidden or char in INVISIBLE or stack > STACKED else char)
    line = "".join(found).replace("##[", "#\\u0023[")
    return line.replace("::", ":\\u003a", 1) if line.lstrip().startswith("::") else line


def _spelt(char: str) -> str:
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char) or (
        f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"
    )


def code_text(text: str) -> str:
    """Visible text that can't end a code span, a table cell or a fence, nor begin HTML, not even where it is pasted."""
    seen = visible(text)
    for char in "`|<":
        seen = seen.replace(char, _spelt(char))
    return seen


def code(text: str) -> str:
    return f"`{code_text(text).strip() or ' '}`"


def inline(part: Inline) -> str:
    """Own words as they are, data as code."""
    if isinstance(part, tuple):
        return "".join(map(inline, part))
    return code(part.text) if isinstance(part, Data) else part


def hidden_note(count: int) -> list[str]:
    return [f"… and {count} more, not shown.", ""] if count else []


def markdown_block(block: Block, most: int) -> list[str]:
    """The lines of a block, with at most `most` rows or entries."""
    if isinstance(block, Heading):
        return [f"### {block.text}", ""]
    if isinstance(block, Paragraph):
        return [inline(block.parts), ""]
    if isinstance(block, Table):
        lines = [f"| {' | '.join(map(inline, cells))} |" for cells in [block.header, *block.rows[:most]]]
        lines.insert(1, "|---" * len(block.header) + "|")
        return [*lines, "", *hidden_note(block.hidden + len(block.rows[most:]))]
    return _chart(block) if isinstance(block, Chart) else _diff(block, most)


def _diff(block: Diff, most: int) -> list[str]:
    lines = [diff_line(line) for entry in block.entries[:most] for line in entry]
    fence = ["```diff", *lines, "```", ""] if lines else []
    return [
        f"<details{' open' if block.open else ''}><summary>{block.title}</summary>",
        "",
        *fence,
        *hidden_note(block.hidden + len(block.entries[most:])),
        "</details>",
        "",
    ]


def diff_line(line: Line) -> str:
    """Never begins with data, so neither a fence nor a log command can stand at a line's beginning."""
    if line.sign == "@":
        return f"@@ {code_text(line.text)} @@"
    return f"{line.sign} {line.label:8} {code_text(line.text)}" if line.label else f"{line.sign} {code_text(line.text)}"


def _chart(block: Chart) -> list[str]:
    """Mermaid draws it in a comment. It knows no legend: the words below say which line is which."""
    curves = [curve for curve in (block.before, block.after) if curve]
    if not curves:
        return []
    top = highest(block)
    shade = {"#8c959f": block.before, "#0969da": block.after}
    colours = ", ".join(colour for colour, curve in shade.items() if curve)
    return [
        "```mermaid",
        f'%%{{init: {{"themeVariables": {{"xyChart": {{"plotColorPalette": "{colours}"}}}}}}}}%%',
        "xychart-beta",
        f'  x-axis "share of the run (%)" {100 / len(curves[0]):.0f} --> 100',
        f'  y-axis "loss" 0 --> {top:.5f}',  # Mermaid reads no exponents
        *(f"  line [{', '.join(f'{value:.5f}' for value in curve[1:])}]" for curve in curves),
        "```",
        f"{block.title}: grey before, blue after; each point is the mean of {100 / len(curves[0]):.0f}% of the steps.",
        "",
    ]


def highest(block: Chart) -> float:
    """The top of the scale. The first part of a run is left out: it would flatten the rest."""
    return max([*block.before[1:], *block.after[1:], 1e-6])


def markdown(title: Inline, blocks: Sequence[Block], longest: int = LONGEST) -> str:
    """The comment, at most `longest` characters: lists get shorter until it fits, and each counts what it left out."""
    most = max([len(b.rows) if isinstance(b, Table) else len(b.entries) for b in blocks if isinstance(b, Table | Diff)])
    while True:
        lines = [MARK, f"## {inline(title)}", "", *(line for block in blocks for line in markdown_block(block, most))]
        text = "\n".join(lines).rstrip("\n") + "\n"
        if len(text) <= longest or not most:
            return text
        most = most * 2 // 3


def page(title: Inline, blocks: Sequence[Block]) -> str:
    """A page that needs nothing from anywhere, and may load and run nothing."""
    import base64
    import hashlib

    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    style = (here / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    env = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters |= {"visible": visible, "points": svg_points, "highest": highest}
    shown = [{"sort": type(block).__name__, "block": block} for block in blocks]
    return env.get_template("page.html.j2").render(title=title, blocks=shown, style=style, digest=digest)


def svg_points(curve: Sequence[float], top: float) -> str:
    """A curve as the points of an SVG polyline in a field of 600 by 200, without its first part."""
    rest = curve[1:]
    step = 600 / max(len(rest) - 1, 1)
    return " ".join(f"{number * step:.1f},{200 - 200 * value / top:.1f}" for number, value in enumerate(rest))
