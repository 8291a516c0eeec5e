"""Any labelled file becomes the pipeline's table, and pages show it between their marks."""

import json
from pathlib import Path
from typing import Any

import pytest
import taught
from click.testing import CliRunner, Result
from conftest import SCHEMA, configure, read_json, write_rows

from stages.core import hashes
from stages.data import writing
from stages.data.examples import Example
from stages.scores import stats
from stages.scores.scoring import Prediction
from tools import measure, table

LIST = {"action": "list", "filter": "all"}
DONE = {"action": "complete", "title": "Buy milk"}
UNCLEAR = '{"action":"reject","reason":"unclear"}'
ROWS: list[dict[str, Any]] = [
    {"instruction": "show all", "output": LIST},
    {"prompt": "milk is bought", "completion": json.dumps(DONE)},
    {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": UNCLEAR}]},
]


@pytest.fixture
def folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that says `LIST` whatever it is asked, and leaves a file that is called asked."""
    (here / "models" / "merged").mkdir(parents=True)

    def answers(model: Path, asked: list[Example], schema: Path | None) -> list[Prediction]:
        (here / "asked").touch()
        return [Prediction(example.id, json.dumps(LIST), False) for example in asked]

    monkeypatch.setattr(measure, "answers", answers)
    return here


def run(file: Path | str, *options: str) -> Result:
    return CliRunner().invoke(measure.main, [str(file), "--schema", str(SCHEMA), *options])


def test_the_table_has_all_kinds_and_the_listed_values_of_a_kind(folder: Path) -> None:
    result = run(write_rows(Path("rows.jsonl"), ROWS))
    assert result.exit_code == 0
    names = [line.split(" | ")[0].removeprefix("| ") for line in result.stdout.split("\n") if line.startswith("| ")]
    assert names == ["answers", "---", "all", "list", "complete", "reject", "list, all", "reject, unclear"]
    every, third = ("{:.3f} [{:.3f}, {:.3f}]".format(hits / 3, *stats.wilson(hits, 3)) for hits in (3, 1))
    assert f"| all | 3 | {every} | {every} | {third} | {third} | {third} | " in result.stdout


def test_failures_are_listed_with_request_and_both_answers(folder: Path) -> None:
    shown = run(write_rows(Path("rows.jsonl"), ROWS)).stdout
    assert "Not exact: 2 of 3.\n" in shown
    assert (
        'wrong: "milk is bought"\n  expected  {"action":"complete","title":"Buy milk"}\n'
        '  predicted {"action":"list","filter":"all"}\n'
    ) in shown


def test_as_json(folder: Path) -> None:
    found = json.loads(run(write_rows(Path("rows.jsonl"), ROWS), "--json").stdout)
    assert (found["n"], found["slices"]["kind"]["list"]["exact_match"], len(found["failures"])) == (3, 1.0, 2)
    assert found["failures"][0]["verdict"] == "wrong"
    assert found["refused"] == []


def test_refused_rows_are_listed_by_line_and_the_others_measured(folder: Path) -> None:
    rows = [{"instruction": "no answer"}, *ROWS, {"instruction": "a", "output": '{"action":"fly"}'}]
    result = run(write_rows(Path("rows.jsonl"), rows))
    assert result.exit_code == 0
    lines = result.stderr.split("\n")
    assert lines[0] == "rows.jsonl:1: 'output' is missing"
    assert lines[1].startswith("rows.jsonl:5: answer: ")
    assert "| all | 3 |" in result.stdout
    assert json.loads(run("rows.jsonl", "--json").stdout)["refused"] == lines[:2]


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\x00\xff\xfe\x00", b"[]", b'{"instruction":"a"}'])
def test_nothing_to_measure(folder: Path, content: bytes | None) -> None:
    if content is not None:
        (folder / "rows.jsonl").write_bytes(content)
    result = run("rows.jsonl")
    assert (result.exit_code, "rows.jsonl" in result.stderr) == (2, True)


@pytest.mark.parametrize("options", [(), ("--constrained",)])
def test_a_model_that_was_taught_the_answer(here: Path, merged: Path, options: tuple[str, ...]) -> None:
    rows = write_rows(Path("rows.jsonl"), [{"instruction": taught.REQUEST, "output": taught.ANSWER}])
    found = json.loads(run(rows, "--json", "--model", str(merged), *options).stdout)
    assert (found["n"], found["exact_match"], found["truncated"]) == (1, 1.0, 0.0)
    configure(here, predict={"max_new_tokens": 2})
    assert json.loads(run(rows, "--json", "--model", str(merged), *options).stdout)["truncated"] == 1.0
    configure(here, compute={"device": "tpu"})
    ran = run(rows, "--model", str(merged), *options)
    assert (ran.exit_code, "'tpu'" in ran.stderr) == (1, True)


def test_an_untaught_model_is_held_to_the_schema_on_request(here: Path, base: Path) -> None:
    rows = write_rows(Path("rows.jsonl"), [{"instruction": "buy milk", "output": taught.ANSWER}])
    free, held = (
        json.loads(run(rows, "--json", "--model", str(base), *options).stdout)["failures"][0]["predicted"]
        for options in ((), ("--constrained",))
    )
    assert held.startswith('{"action":"')
    assert held != free


def test_a_summary_has_the_figures_their_origin_and_no_text(here: Path, merged: Path) -> None:
    rows = write_rows(Path("rows.jsonl"), [{"instruction": taught.REQUEST, "output": taught.ANSWER}])
    assert run(rows, "--model", str(merged), "--summary", "figures.json").exit_code == 0
    found = read_json(here / "figures.json")
    assert (found["n"], found["exact_match"], found["constrained"]) == (1, 1.0, False)
    assert found["computed_from"]["requests"] == hashes.of_file(rows)
    assert found["computed_from"]["schema"] == hashes.of_file(SCHEMA)  # tools.table asks for it
    assert found["computed_from"]["adapter"] == read_json(merged / "made_from.json")["adapter"]
    assert taught.REQUEST not in (here / "figures.json").read_text("utf-8")
    assert "failures" not in found
    assert run(rows, "--model", str(merged), "--summary", "figures.json", "--constrained").exit_code == 0
    assert read_json(here / "figures.json")["constrained"] is True


def test_a_refused_row_steers_no_terminal(folder: Path) -> None:
    result = run(write_rows(Path("a\x1b.jsonl"), [*ROWS, {"instruction": "?"}]))
    assert ("a\\x1b.jsonl:4: " in result.stderr, "\x1b" in result.output) == (True, False)


def test_a_model_without_an_origin_is_refused_before_it_answers(folder: Path) -> None:
    result = run(write_rows(Path("rows.jsonl"), ROWS), "--summary", "figures.json")
    assert (result.exit_code, "made_from.json" in result.stderr) == (1, True)
    assert not (folder / "asked").exists()


def test_requests_from_elsewhere_are_shown_for_the_model_that_answered_them(metrics: Path) -> None:
    slices = {"kind": {"list": rates(0.5) | {"n": 20}, "create": rates(0.4) | {"n": 19}}, "value": {}}
    found = rates(0.7) | {"n": 39, "slices": slices, "constrained": False, "computed_from": ORIGIN}
    file = metrics.parent / "experiments" / "requests.json"
    assert table.read(metrics)["requests"] == [f"Not measured for this model: `{table.MEASURE}`."]
    file.parent.mkdir()
    file.write_text(json.dumps(found), encoding="utf-8")
    shown = [line.split(" | ")[:2] for line in table.read(metrics)["requests"]]
    assert shown == [["| answers", "n"], ["| ---", "---"], ["| all", "39"], ["| list", "20"]]
    others: list[dict[str, Any]] = [{"computed_from": ORIGIN | {name: "another"}} for name in ORIGIN]
    for other in (*others, {"constrained": True}):
        file.write_text(json.dumps(found | other), encoding="utf-8")
        assert table.read(metrics)["requests"][0].startswith("Not measured for this model")


def test_a_missing_model_is_named(here: Path) -> None:
    assert "models/merged is missing; run `make repro`" in run(write_rows(Path("rows.jsonl"), ROWS)).output


def test_an_answer_with_control_characters_is_printed_as_text() -> None:
    assert measure.shown("a\n\x1b[31m") == '"a\\n\\u001b[31m"'
    assert measure.shown('{"title": "Müller"}') == '{"title":"Müller"}', "to be compared with what was expected"


def rates(exact: float, **more: Any) -> dict[str, Any]:
    return {"n": 9, "exact_match": exact, "exact_match_low": exact, "exact_match_high": exact, **more}


ENDS = ("", "_low", "_high")
ORIGIN = {"adapter": "a1", "schema": "s1"}
GAIN = {"difference": 0.5, "low": 0.4, "high": 0.6, "p_value": 0.01, "n": 9}
EVALUATED = {
    "systems": {
        "few_shot": rates(0.1, slices={"slice": {}}),
        "tuned": rates(0.8, slices={"slice": {"head": rates(0.9), "tail": rates(0.7)}}),
        "extra": rates(0.5, slices={"slice": {}}),
    },
    "held_out": {"tuned": rates(0.75)},
    "gain_over_few_shot": GAIN,
    "computed_from": ORIGIN,
}
TEXT = json.dumps(EVALUATED).replace("0.75", '"high"').encode()  # for a number


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    folder = tmp_path / "metrics" / "detail"
    folder.mkdir(parents=True)
    (folder / "evaluate.json").write_text(json.dumps(EVALUATED), encoding="utf-8")
    return folder


def test_the_results_stand_best_first_with_the_slices_of_the_tuned_model(metrics: Path) -> None:
    lines = table.read(metrics)["table"]
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert names == ["system", "---", "tuned", "tuned, head", "tuned, tail", "extra", "few_shot"]
    assert "Gain of tuned over few_shot, exact match: +0.500 [+0.400, +0.600], p = 0.01, n = 9 pairs." in lines
    assert lines[-1] == "Held-out rows, for choosing settings: exact match 0.750 [0.750, 0.750], n = 9."


def test_behaviour_tests_are_shown_where_there_are_any(metrics: Path) -> None:
    kinds: dict[str, Any] = {
        "minimum": {"n": 4, "passed": 1.0, "passed_low": 0.5, "passed_high": 1.0},
        "invariance": {"n": 0},
    }
    (metrics / "behaviour.json").write_text(json.dumps({"kinds": kinds}), encoding="utf-8")
    lines = [line for line in table.read(metrics)["table"] if "minimum" in line or "invariance" in line]
    assert lines == ["| minimum | 4 | 1.000 [0.500, 1.000] |"]


def test_what_was_kept_and_memorised(metrics: Path) -> None:
    model = {"n": 4, "perplexity": 9.0, "bits_per_byte": 1.0, "kinds": {}, **{f"accuracy{end}": 0.5 for end in ENDS}}
    limit = {"what": "accuracy lost", "value": 0.1, "low": 0.04, "high": 0.2, "limit": 0.05, "holds": True}
    retention = {"tuned_over_base": {"accuracy": GAIN}, "limits": [limit, limit | {"holds": False}]}
    retention |= dict.fromkeys(("base", "adapter_off", "tuned"), model)
    split = {"n": 9, **{f"extracted{end}": 0.25 for end in ENDS}}
    way = {"train": split, "test": split, "difference": {"extracted": 0.0, "low": -0.1, "high": 0.1}}
    memorisation = {"without_request": way, "with_request": way, "limits": []}
    for name, found in (("retention", retention), ("memorisation", memorisation)):
        (metrics / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    parts = table.read(metrics)
    assert parts["table"][-1].startswith("What that cost: general questions right, tuned minus base, +0.500 [+0.400, ")
    every = "0.500 [0.500, 0.500]"
    assert f"| all questions (4) | {every} | {every} | {every} |" in parts["kept"]
    assert "Limit 0.05 of accuracy lost: +0.100 [+0.040, +0.200], holds." in parts["kept"]
    assert "Limit 0.05 of accuracy lost: +0.100 [+0.040, +0.200], broken." in parts["kept"]
    rates = "0.250 [0.250, 0.250] | 0.250 [0.250, 0.250]"
    assert f"| without request | 9 | {rates} | +0.000 [-0.100, +0.100] |" in parts["kept"]


@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff", b'{"systems": {"tuned": 1}}', TEXT, None])
def test_other_figures_are_refused_by_name(metrics: Path, content: bytes | None) -> None:
    (metrics / "evaluate.json").unlink()
    if content is not None:
        (metrics / "evaluate.json").write_bytes(content)
    result = CliRunner().invoke(table.main, ["--metrics", str(metrics)])
    assert (result.exit_code, str(metrics) in result.output) == (1, True)


def test_other_figures_of_requests_name_what_writes_them(metrics: Path) -> None:
    writing.write_json(metrics.parent / "experiments/requests.json", {"computed_from": {}})
    result = CliRunner().invoke(table.main, ["--metrics", str(metrics)])
    assert "requests.json: not the figures" in result.output
    assert f"run `{table.MEASURE}`" in result.output


def test_write_replaces_what_stands_between_the_marks(metrics: Path) -> None:
    page = metrics / "page.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n", encoding="utf-8")
    assert CliRunner().invoke(table.main, ["--metrics", str(metrics), "--write", str(page)]).exit_code == 0
    written = page.read_text(encoding="utf-8")
    assert written.startswith("before\n<!-- table -->\n| system | n |")
    assert written.endswith(", n = 9.\n<!-- /table -->\nafter\n")
    assert "old" not in written


START, END = "<!-- table -->\n", "<!-- /table -->\n"


@pytest.mark.parametrize(
    "text",
    ["no marks", START, END, END + START, START * 2, f"<!-- requests -->\n<!-- /requests -->\n{END}"],
)
def test_a_page_without_both_marks_is_refused(metrics: Path, text: str) -> None:
    page = metrics / "page.md"
    page.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(table.main, ["--metrics", str(metrics), "--write", str(page)])
    assert (result.exit_code, str(page) in result.output) == (2, True)
    assert page.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_a_page_that_is_no_text_is_refused_alike(metrics: Path, content: bytes | None) -> None:
    page = metrics / "page.md"
    if content:
        page.write_bytes(content)
    result = CliRunner().invoke(table.main, ["--metrics", str(metrics), "--write", str(page)])
    assert (result.exit_code, f"Error: {page}: " in result.output) == (2, True)
