"""Reports on small repositories with known truths, made by Git and DVC themselves."""

import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from conftest import ROOT, SCHEMA, write_rows

from tools import report
from tools.reporting import document, kept, paired, row_changes

DVC_YAML = """\
stages:
  evaluate:
    cmd: python score.py
    deps: [data/raw, data/test, score.py]
    params: [train]
    outs:
      - metrics/outcomes.jsonl: {cache: false}
    metrics:
      - metrics/evaluate.json: {cache: false}
"""
PARAMS = """\
train:
  epochs: 3
report:
  confidence: 0.95
  min_shared: 30
  bootstrap_resamples: 1000
  seed: 17
  rules:
    - {system: tuned, metric: exact_match, direction: higher, tolerated_drop: 0.02, floor: 0.5}
"""
OTHER_STAGE = "  more:\n    cmd: python score.py\n    outs: [more.txt]\n  evaluate:"
RATES = "metrics/evaluate.json"
RIGHT = '{"action":"list","filter":"all"}'
WRONG = '{"action":"list","filter":"overdue"}'


def git(*words: str) -> str:
    own = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/"]
    ran = subprocess.run(["git", *own, *words], capture_output=True, text=True, check=True)  # noqa: S607
    return ran.stdout.strip()


def asked(number: int, answer: str = RIGHT, **more: Any) -> dict[str, Any]:
    return {"id": f"r{number}", "instruction": f"request {number}", "output": answer, **more}


def measure(right: list[bool], first: int = 0) -> None:
    """Test rows and metrics of a run whose answers were right or wrong."""
    write_rows(Path("data/test/rows.jsonl"), [asked(first + number) for number in range(len(right))])
    wrong = {"verdict": "wrong", "answer": WRONG}
    names = [f"r{first + number}" for number in range(len(right))]
    verdicts = [{"verdict": "exact"} if hit else wrong for hit in right]
    lines = [{"id": n, "group": n, "kind": "list", "tuned": v} for n, v in zip(names, verdicts, strict=True)]
    write_rows(Path("metrics/outcomes.jsonl"), lines)
    rate = sum(right) / len(right)
    rates = {"exact_match": rate, "exact_match_normalised": rate, "schema_valid": 1.0, "json_valid": 1.0}
    Path("metrics/evaluate.json").write_text(json.dumps({"tuned": rates}) + "\n", encoding="utf-8")


def record() -> str:
    """Let DVC record the run, and commit it."""
    from dvc.repo import Repo

    with Repo() as repo:
        repo.commit(force=True)
    return commit()


def commit() -> str:
    git("add", "--all")
    git("commit", "-qm", "a change")
    return git("rev-parse", "HEAD")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A repository with one run, 80 of 100 answers right; its commit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    git("init", "-q")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n", encoding="utf-8")
    Path(".dvc/.gitignore").write_text("*\n!config\n", encoding="utf-8")
    Path("dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    Path("params.yaml").write_text(PARAMS, encoding="utf-8")
    Path("score.py").write_text("print('scored')\n", encoding="utf-8")
    write_rows(Path("data/raw/rows.jsonl"), [asked(number) for number in range(20)])
    Path("data/schema.json").write_bytes(SCHEMA.read_bytes())
    measure([True] * 80 + [False] * 20)
    return record()


def run(*words: str) -> Result:
    return CliRunner().invoke(report.main, list(words))


def data(*words: str) -> Any:
    """The report's data; the command must have made one."""
    return json.loads(run(*words, "--json").stdout)


def edit(file: str, old: str, new: str) -> None:
    path = Path(file)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_planted_flips_come_out_exactly(base: str) -> None:
    measure([True] * 180 + [False] * 120)
    before = record()
    measure([False] * 9 + [True] * 171 + [True] * 37 + [False] * 83)
    record()
    found = data(before)["comparison"]
    assert (found["flips"]["fixed"]["total"], found["flips"]["broken"]["total"]) == (37, 9)
    metric = found["metrics"][0]
    assert (metric["fixed"], metric["broken"], metric["n"], metric["evidence"]) == (37, 9, 300, "better")
    assert metric["p_value"] == pytest.approx(2 * sum(math.comb(46, k) for k in range(10)) / 2**46)


def test_no_change_holds_and_says_what_could_have_shown(base: str) -> None:
    ran = run(base)
    assert ran.exit_code == 0
    assert "✅ The gate holds" in ran.stdout
    assert "no evidence of a change; 100 rows show ±" in ran.stdout


def test_a_clear_drop_fails_the_gate_with_its_interval(base: str) -> None:
    measure([True] * 60 + [False] * 40)
    record()
    ran = run(base)
    assert ran.exit_code == 1
    assert "❌ The gate fails: `tuned` `exact_match` got worse by more than the tolerated 0.02" in ran.stdout


def test_a_flip_shows_request_answers_and_the_field(base: str) -> None:
    measure([False] + [True] * 79 + [False] * 20)
    record()
    entry = run(base).stdout.split("@@ r0 list @@\n")[1].split("```")[0]
    assert entry == (
        "  request  request 0\n"
        f"  expected {RIGHT}\n"
        "+ before   as expected\n"
        f"- after    {WRONG}\n"
        '! differs  filter is "overdue", not "all"\n'
    )


def test_the_working_tree_counts_with_what_is_not_added_yet(base: str) -> None:
    write_rows(Path("data/raw/new.jsonl"), [asked(100), asked(101)])
    Path(".gitignore").write_text("/data/raw/ignored.jsonl\n", encoding="utf-8")
    write_rows(Path("data/raw/ignored.jsonl"), [asked(102)])
    found = data(base)
    assert found["head"]["name"] == "working tree"
    assert found["changes"]["data"]["raw"]["added"]["total"] == 2
    assert data(base, "--head", base)["changes"]["data"]["raw"]["added"]["total"] == 0


BROKEN: dict[str, tuple[Callable[[], object], str, str]] = {
    "edited by hand": (lambda: edit("metrics/evaluate.json", "0.8", "0.9"), "metrics/evaluate.json", "md5"),
    "NaN": (lambda: edit("metrics/evaluate.json", "0.8", "NaN"), "metrics/evaluate.json", "NaN"),
    "unparsable": (lambda: edit("metrics/evaluate.json", "{", "("), "metrics/evaluate.json", "not JSON"),
    "missing": (lambda: Path("metrics/evaluate.json").unlink(), "metrics/evaluate.json", "missing"),
    "no outcomes": (lambda: Path("metrics/outcomes.jsonl").unlink(), "metrics/outcomes.jsonl", "missing"),
    "code is newer": (lambda: edit("score.py", "scored", "scores"), "score.py", "dvc.lock"),
    "params are newer": (
        lambda: edit("params.yaml", "epochs: 3", "epochs: 4"),
        "params.yaml: train",
        "dvc.lock",
    ),
    "data is newer": (lambda: write_rows(Path("data/raw/more.jsonl"), [asked(99)]), "data/raw", "dvc.lock"),
    "command is newer": (lambda: edit("dvc.yaml", "python score.py", "python score.py -v"), "dvc.yaml", "dvc.lock"),
    "test rows are gone": (lambda: shutil.rmtree("data/test"), "data/test", "dvc.lock"),
    "an odd shape": (lambda: Path("metrics/evaluate.json").write_text('{"tuned": 1}'), "metrics/evaluate.json", "None"),
    "a stage never ran": (lambda: edit("dvc.yaml", "  evaluate:", OTHER_STAGE), "more.txt", "no record"),
    "metrics of nobody": (lambda: edit("dvc.yaml", "metrics/evaluate", "metrics/other"), RATES, "no stage"),
    "no params": (lambda: Path("params.yaml").unlink(), "params.yaml: missing", "dvc.lock"),
    "no lock": (lambda: Path("dvc.lock").unlink(), "dvc.lock", "missing"),
    "a broken lock": (lambda: edit("dvc.lock", "stages:", "stages: ["), "dvc.lock", "can't read"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_the_gate_fails_and_names_the_file(base: str, name: str) -> None:
    spoil, file, reason = BROKEN[name]
    spoil()
    ran = run(base)
    assert ran.exit_code == 1, ran.output
    title = ran.stdout.split("\n")[1]
    assert title.startswith("## ❌ The gate fails: ")
    assert any(f"`{file}" in line and reason in line for line in ran.stdout.split("\n")[4:12])


@pytest.mark.parametrize("file", ["dvc.lock", "metrics/evaluate.json", "notes.md"])
def test_conflict_markers_fail_the_gate(base: str, file: str) -> None:
    path = Path(file)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(before + "<" * 7 + " ours\n1\n" + "=" * 7 + "\n2\n" + ">" * 7 + " theirs\n", encoding="utf-8")
    ran = run(base)
    assert ran.exit_code == 1
    assert f"`{file}` | `holds conflict markers`" in ran.stdout


def test_rates_that_the_outcomes_do_not_bear_out_fail_even_when_recorded(base: str) -> None:
    edit("metrics/evaluate.json", "0.8", "0.9")
    record()
    ran = run(base)
    assert ran.exit_code == 1
    assert "tuned.exact_match is 0.9, the outcomes make it 0.800000" in ran.stdout


def test_a_metric_that_evaluate_no_longer_writes_fails(base: str) -> None:
    edit("metrics/evaluate.json", '"exact_match": 0.8, ', "")
    record()
    assert "tuned.exact_match is None" in run(base).stdout


def test_a_system_that_is_gone_fails(base: str) -> None:
    text = Path("metrics/outcomes.jsonl").read_text(encoding="utf-8").replace('"tuned"', '"other"')
    Path("metrics/outcomes.jsonl").write_text(text, encoding="utf-8")
    Path("metrics/evaluate.json").write_text(
        '{"other":{"exact_match":0.8,"exact_match_normalised":0.8,"schema_valid":1,"json_valid":1}}', encoding="utf-8"
    )
    record()
    ran = run(base)
    assert ran.exit_code == 1
    assert "no verdict of the system" in ran.stdout


def test_a_changed_test_set_is_compared_on_the_shared_ids_and_said_so(base: str) -> None:
    measure([True] * 90, first=40)
    record()
    found = data(base)["comparison"]
    assert (found["shared"], found["only_before"], found["only_after"]) == (60, 40, 30)
    assert "**The test set changed**" in run(base).stdout


def test_a_test_row_with_a_new_expected_answer_is_not_the_same_row(base: str) -> None:
    edit("data/test/rows.jsonl", json.dumps(RIGHT), json.dumps(WRONG))
    record()
    found = data(base)["comparison"]
    assert (found["shared"], found["edited"]) == (99, 1)


def test_a_changed_scorer_is_said(base: str) -> None:
    edit("data/schema.json", "Task API action", "Another action")
    record()
    assert "**The scorer changed**, each side was scored by its own: `data/schema.json`" in run(base).stdout


def test_fewer_than_30_shared_rows_are_refused(base: str) -> None:
    measure([True] * 100, first=71)
    record()
    ran = run(base)
    assert ran.exit_code == 2
    assert "only 29 test answers are the same on both sides, 30 are needed" in ran.stdout
    assert data(base)["comparison"] is None


def test_a_base_without_metrics_is_refused(base: str) -> None:
    git("rm", "-q", "metrics/outcomes.jsonl")
    before = commit()
    measure([True] * 80 + [False] * 20)
    record()
    ran = run(before)
    assert ran.exit_code == 2
    assert "the base has no usable outcomes" in ran.stdout


@pytest.mark.parametrize("words", [["nowhere"], ["--output=x"], ["HEAD", "--head", "nowhere"], []])
def test_what_is_not_a_commit_is_one_line_and_status_2(base: str, words: list[str]) -> None:
    ran = run(*words)
    assert ran.exit_code == 2
    assert "Traceback" not in ran.output
    assert ran.stdout == ""


def test_a_change_is_judged_by_the_rules_that_it_found(base: str) -> None:
    edit("params.yaml", "tolerated_drop: 0.02, floor: 0.5", "tolerated_drop: 1.0, floor: 0.0")
    measure([True] * 40 + [False] * 60)
    record()
    ran = run(base)
    assert ran.exit_code == 1
    assert "alters the gate's own rules" in ran.stdout


def test_rows_are_followed_by_id_and_content(base: str) -> None:
    rows = [asked(number) for number in range(20)]
    rows[1] = asked(1, WRONG)
    rows[2] |= {"instruction": "something else"}
    del rows[3]
    rows[4] |= {"output": json.dumps(json.loads(RIGHT), indent=2)}  # spelt otherwise, the same answer
    rows[5] |= {"id": "renumbered"}
    Path("data/raw/rows.jsonl").unlink()
    write_rows(Path("data/raw/moved.jsonl"), [*rows, asked(50)])
    found = data(base)["changes"]["data"]["raw"]
    assert {sort: [row["id"] for row in found[sort]["items"]] for sort in document.SORTS} == {
        "added": ["r50"],
        "removed": ["r3"],
        "relabelled": ["r1"],
        "reworded": ["r2"],
    }


def test_a_row_without_an_id_that_gets_another_answer_is_relabelled(base: str) -> None:
    for answer in (RIGHT, WRONG):
        rows = [{"instruction": "no id here", "output": answer}, asked(1)]
        write_rows(Path("data/raw/rows.jsonl"), rows)
        last = record()
    found = data(f"{last}~1", "--head", last)["changes"]["data"]["raw"]
    assert [found[sort]["total"] for sort in ("added", "removed", "relabelled")] == [0, 0, 1]


def test_files_that_dvc_holds_are_compared_by_md5_and_not_called_stale(base: str) -> None:
    from dvc.repo import Repo

    write_rows(Path("data/raw/large.jsonl"), [asked(200)])
    with Repo() as repo:
        repo.add("data/raw/large.jsonl")
    before = record()
    assert data(base)["status"] == "pass"
    assert data(base)["changes"]["pointers"]["items"][0]["name"] == "data/raw/large.jsonl.dvc"
    write_rows(Path("data/raw/large.jsonl"), [asked(201)])
    with Repo() as repo:
        repo.add("data/raw/large.jsonl")
    commit()  # without running the pipeline
    found = data(before)
    assert [problem["file"] for problem in found["problems"]["items"]] == ["data/raw"]


def test_a_link_in_a_pull_request_is_not_followed(base: str, tmp_path: Path) -> None:
    secret = tmp_path.parent / "secret.jsonl"
    write_rows(secret, [asked(300)])
    Path("data/raw/link.jsonl").symlink_to(secret)
    head = commit()
    for words in ([base], [base, "--head", head]):
        assert "request 300" not in run(*words).output
    secret.unlink()


def keep(part: str, **changed: Any) -> None:
    """Figures of what was kept or copied, well within their limits but for what is given, as a stage of its own."""
    figures: dict[str, Any] = {"n": 100, "base": 0.6, "tuned": 0.6, "difference": 0.0, "low": -0.1, "high": 0.1}
    figures |= {"ratio": 1.2, "ratio_low": 1.1, "ratio_high": 1.3, "tolerated_drop": 0.1, "tolerated_ratio": 2.0}
    figures |= {"train_n": 50, "train": 0.04, "test_n": 50, "test": 0.04, "tolerated": 0.05, "ids": ["r1", "r2"]}
    figures |= {"items": "a" * 64, "text": "b" * 64}
    figures |= changed
    value: dict[str, Any] = {"verdict": changed.get("verdict", "held")}
    for name, path in kept.PATHS[part].items():
        *parents, last = path.split(".")
        inner = value
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = figures[name]
    Path(kept.FILES[part]).write_text(json.dumps(value), encoding="utf-8")
    if stage_of(part) not in Path("dvc.yaml").read_text(encoding="utf-8"):
        edit("dvc.yaml", "stages:\n", f"stages:\n{stage_of(part)}")


def stage_of(part: str) -> str:
    return f"  {part}:\n    cmd: python score.py {part}\n    metrics: [{{{kept.FILES[part]}: {{cache: false}}}}]\n"


def test_what_was_kept_and_copied_is_shown_beside_its_limits(base: str) -> None:
    keep("retention", difference=-0.05, low=-0.12, high=0.02)
    keep("memorisation")
    record()
    ran = run(base)
    assert ran.exit_code == 0
    shown = ran.stdout.split("### Kept and copied")[1].split("###")[0]
    rows = [line for line in shown.split("\n") if line.startswith("| ")][1:]
    assert rows == [
        "| general questions, tuned minus base | not measured | -0.050 [-0.120, +0.020] | drop at most 0.1 | yes |",
        "| perplexity of plain text, tuned over base | not measured | 1.200 [1.100, 1.300] | at most 2 | yes |",
        "| answers recited, training minus test rows | not measured | +0.000 [-0.100, +0.100] | at most 0.05 | yes |",
    ]
    assert "The training rows: `r1`, `r2`." in shown


def test_where_nothing_was_measured_it_says_so(base: str) -> None:
    ran = run(base)
    assert "Measured on neither side: metrics/retention.json, metrics/memorisation.json." in ran.stdout
    assert ran.exit_code == 0


@pytest.mark.parametrize(
    ("part", "verdict", "figures", "words"),
    [
        ("retention", "lost", {"difference": -0.3, "low": -0.4, "high": -0.11}, "lost general questions"),
        ("retention", "lost", {"ratio": 3.0, "ratio_low": 2.1, "ratio_high": 4.0}, "lost plain text"),
        ("memorisation", "copied", {"difference": 0.2, "low": 0.06, "high": 0.3}, "copied training answers"),
    ],
)
def test_what_was_lost_or_copied_fails_the_gate(
    base: str, part: str, verdict: str, figures: dict[str, float], words: str
) -> None:
    keep(part, verdict=verdict, **figures)
    record()
    ran = run(base)
    assert ran.exit_code == 1
    assert f"❌ The gate fails: the tuned model {words}: " in ran.stdout
    assert "| **no** |" in ran.stdout


def test_a_change_cannot_loosen_what_is_tolerated(base: str) -> None:
    keep("memorisation")
    before = record()
    keep("memorisation", difference=0.2, low=0.06, high=0.3, tolerated=0.9)
    record()
    ran = run(before)
    assert ran.exit_code == 1
    assert "at most 0.05 is tolerated" in ran.stdout


def test_general_questions_that_changed_are_said(base: str) -> None:
    keep("retention")
    before = record()
    assert "different questions" not in run(before).stdout
    keep("retention", items="c" * 64)
    record()
    assert "different questions" in run(before).stdout


def test_a_change_cannot_stop_measuring(base: str) -> None:
    keep("retention")
    before = record()
    Path(kept.FILES["retention"]).unlink()
    stage = (
        "  retention:\n    cmd: python score.py retention\n    metrics: [{metrics/retention.json: {cache: false}}]\n"
    )
    edit("dvc.yaml", stage, "")
    record()
    ran = run(before)
    assert ran.exit_code == 1
    assert "`metrics/retention.json` | `measured before, and missing now; run dvc repro`" in ran.stdout


def test_what_the_base_lost_does_not_fail_a_change_that_mends_it(base: str) -> None:
    keep("retention", verdict="lost", difference=-0.3, low=-0.4, high=-0.2)
    before = record()
    keep("retention")
    record()
    assert run(before).exit_code == 0


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda: keep("retention", verdict="lost"), "its verdict is not the one that follows from its figures"),
        (lambda: keep("retention", low="-0.1"), "not what stages/retention.py writes"),
        (lambda: keep("retention", n=-1), "not what stages/retention.py writes"),
    ],
)
def test_figures_at_odds_with_themselves_fail_even_when_recorded(
    base: str, spoil: Callable[[], None], reason: str
) -> None:
    spoil()
    record()
    ran = run(base)
    assert ran.exit_code == 1
    assert f"`metrics/retention.json` | `{reason}`" in ran.stdout


def test_figures_that_no_stage_wrote_fail(base: str) -> None:
    keep("retention")
    edit("dvc.yaml", kept.FILES["retention"], "metrics/other.json")
    assert "`metrics/retention.json` | `no stage in dvc.yaml writes it`" in run(base).stdout


def test_settings_and_code_that_changed_are_listed(base: str) -> None:
    edit("params.yaml", "epochs: 3", "epochs: 4")
    edit("dvc.yaml", "python score.py", "python score.py -v")
    record()
    found = data(base)["changes"]
    assert found["params"]["items"] == [{"name": "train.epochs", "before": "3", "after": "4"}]
    assert found["code"]["items"] == ["dvc.yaml"]


def test_the_checklist_is_compared_whatever_its_shape(base: str) -> None:
    file = Path("metrics/validate.json")
    file.write_text('{"clean": {"duplicates": {"share": 0.1, "rows": [{"id": "a"}]}}}', encoding="utf-8")
    before = record()
    file.write_text('{"clean": {"duplicates": {"share": 0.2, "rows": []}}}', encoding="utf-8")
    found = data(before)["changes"]["checklist"]["items"]
    assert [(item["name"], item["before"], item["after"]) for item in found] == [
        ("clean.duplicates.share", "0.1", "0.2"),
        ("clean.duplicates.rows", "", "[]"),
        ("clean.duplicates.rows.0.id", '"a"', ""),
    ]


def test_what_json_prints_renders_the_same_and_page_and_status_follow(base: str, tmp_path: Path) -> None:
    measure([True] * 60 + [False] * 40)
    record()
    (tmp_path / "report.json").write_text(run(base, "--json").stdout, encoding="utf-8")
    again = run("--render", "report.json", "--html", "page.html")
    assert again.exit_code == 0
    assert again.stdout == run(base).stdout
    assert Path("page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_odd_file_names_do_not_break_the_data(base: str) -> None:
    Path("stages").mkdir()
    Path(os.fsdecode(b"stages/\xff\n::error.py")).write_text("x", encoding="utf-8")
    Path("report.json").write_text(run(base, "--json").stdout, encoding="utf-8")
    assert "`stages/?\\n::error.py`" in run("--render", "report.json").stdout


def test_a_file_that_is_no_report_is_refused(base: str) -> None:
    for text in ("# hello", "{}", '{"version": NaN}'):
        Path("report.json").write_text(text, encoding="utf-8")
        ran = run("--render", "report.json")
        assert (ran.exit_code, ran.stdout) == (2, "")


def test_ids_are_those_of_the_pipeline(tmp_path: Path) -> None:
    from stages import build
    from stages.checklist import correct
    from stages.shared import contract, rows

    turns = [("user", "a"), ("assistant", RIGHT.replace(":", ": ")), ("user", "b"), ("assistant", WRONG)]
    talk = {"messages": [{"role": role, "content": content} for role, content in turns]}
    file = write_rows(tmp_path / "rows.jsonl", [talk, asked(1)])
    rules = contract.load(SCHEMA)
    checked = [correct.check_row(row, rules).row for row in rows.read(file)]
    kept = [{"id": row.id, "source": "", "turns": list(row.turns)} for row in checked]
    built = [example for row in kept for example in build.examples_of(row, rules)]
    assert {example["id"]: example["answer"] for example in built} == {
        name: answer for name, (_, answer, _) in row_changes.examples(tmp_path).items()
    }


def test_verdicts_are_those_of_the_scorer() -> None:
    source = (ROOT / "stages" / "evaluate.py").read_text(encoding="utf-8")
    assert all(f'"{verdict}"' in source for verdict in paired.VERDICTS)
