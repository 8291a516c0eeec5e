"""The Data Docs: one page with all verdicts and the rows behind them, the same bytes each time.

Great Expectations' own pages have run times and random ids in them, load fonts and scripts from other hosts, and put
the text of rows into their HTML as it is.
"""

from collections.abc import Sequence
from pathlib import Path

from stages.checklist.verdicts import Verdict
from stages.data import writing

TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Data checklist</title>
<style>
  body { font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
  table { border-collapse: collapse; width: 100%; }
  th, td { border-bottom: 1px solid #8886; padding: .3rem .6rem; text-align: left; vertical-align: top; }
  .critical { background: #f443; } .warning { background: #fb03; } td { overflow-wrap: anywhere; }
</style>
<h1>Data checklist</h1>
<p>{% for line in lines %}{{ line }}<br>{% endfor %}</p>
<table>
<tr><th>group<th>check<th>rows<th>verdict<th>value<th>limit<th>examples
{% for v in verdicts %}
<tr class="{{ v.verdict }}" id="{{ v.scope }}-{{ v.check }}"><td>{{ v.group }}<td>{{ v.check }}<td>{{ v.scope }}
<td>{{ v.verdict }}<td>{{ v.value | figure }}<td>{{ v.limit | figure }}
<td>{{ v.examples[0] }}{% if v.examples[1:] %}<details><summary>{{ v.examples | length - 1 }} more</summary>
{% for example in v.examples[1:] %}{{ example }}<br>{% endfor %}</details>{% endif %}
{% endfor %}
</table>
</html>
"""


def write(file: Path, lines: Sequence[str], verdicts: Sequence[Verdict]) -> None:
    """Write the page: `lines` of introduction, then a table."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters["figure"] = lambda number: "" if number is None else f"{number:.3g}"
    with writing.replacing(file) as page:
        page.write(environment.from_string(TEMPLATE).render(lines=lines, verdicts=verdicts) + "\n")
