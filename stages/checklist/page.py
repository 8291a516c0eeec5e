"""The front page of the Data Docs: the checklist with its verdicts, from each of which a link leads to the rows.

Great Expectations' own front page needs scripts from the network to list anything, and all its pages ask other hosts
for fonts, styles and logos. This one is complete in itself, and takes those references out of the others.
"""

import re
from pathlib import Path
from typing import Any

EXTERNAL = re.compile(r"<script[^>]*\bsrc=\"https?:[^>]*>\s*</script>|<(?:link|img)[^>]*\b(?:href|src)=\"https?:[^>]*>")
TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Data checklist</title>
<style>
  body { font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
  table { border-collapse: collapse; width: 100%; }
  th, td { border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left; vertical-align: top; }
  .critical { background: #fde0dc; } .warning { background: #fff3cd; }
</style>
<h1>Data checklist</h1>
<p>{% for line in counts %}{{ line }}<br>{% endfor %}</p>
<table>
<tr><th>group<th>check<th>rows<th>verdict<th>figures<th>example
{% for item in items %}
<tr class="{{ item.verdict }}"><td>{{ item.group }}
<td><a href="{{ item.page }}">{{ item.check }}</a><td>{{ item.scope }}
<td>{{ item.verdict }}<td>{{ item.numbers }}<td>{{ item.example or "" }}
{% endfor %}
</table>
</html>
"""


def write(docs: Path, counts: list[str], items: list[dict[str, Any]]) -> None:
    """Put the page in the place of the front page of `docs`. An item has group, check, suite, scope, verdict, numbers,
    example; its link is the validation page of its suite.
    """
    from jinja2 import Environment

    for page in docs.rglob("*.html"):
        page.write_text(EXTERNAL.sub("", page.read_text(encoding="utf-8")), encoding="utf-8")
    pages = {page.relative_to(docs).parts[1]: page.relative_to(docs) for page in docs.glob("validations/*/*/*/*.html")}
    linked = [item | {"page": pages[item["suite"]].as_posix()} for item in items]
    text = Environment(autoescape=True).from_string(TEMPLATE).render(counts=counts, items=linked)
    (docs / "index.html").write_text(text + "\n", encoding="utf-8")
