"""`tools.report` on small repositories with known truths, hostile ones among them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small
from click.testing import CliRunner, Result
from conftest import ROOT, read_rows, write_rows
from markdown_it import MarkdownIt
from small import RIGHT, WRONG, edit, git, measure, put, record, row

from review import changes, compare, rows
from tools import report as command
from versions import history, names


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A repository with one run, 80 of 100 answers right; its commit."""
    return small.start(tmp_path, monkeypatch)


def run(*words: str) -> Result:
    return CliRunner().invoke(command.main, list(words))


def title(ran: Result) -> str:
    return ran.stdout.split("\n")[0]


def listed(ran: Result, name: str) -> str:
    """What stands below a title."""
    return ran.stdout.partition(f"<summary>{name} (")[2].partition("</details>")[0]


# The verdict


def test_no_change_holds_and_says_what_could_have_shown(base: str) -> None:
    ran = run(base)
    assert ran.exit_code == 0
    assert title(ran) == "## ✅ The gate holds: `tuned` `exact_match` 0.800 → 0.800, no evidence of a change"
    assert "no evidence; 100 rows show ±" in ran.stdout
    assert "Retraining noise: not measured (`python -m experiments.seeds`)" in ran.stdout


def test_planted_flips_come_out_exactly(base: str) -> None:
    measure([True] * 180 + [False] * 120)
    before = record()
    measure([False] * 9 + [True] * 171 + [True] * 37 + [False] * 83)
    record()
    ran = run(before)
    assert title(ran).endswith("0.600 → 0.693, better")
    assert "| 37 / 9 | 300 | better |" in ran.stdout
    assert "<details open><summary>Regressed answers (9)</summary>" in ran.stdout
    assert "<details><summary>Fixed answers (37)</summary>" in ran.stdout


def test_a_clear_drop_fails_the_gate_with_its_interval(base: str) -> None:
    measure([True] * 60 + [False] * 40)
    head = record()
    measure([True] * 80 + [False] * 20)
    ran = run(base, "--head", head)
    assert ran.exit_code == 1
    assert title(ran).startswith("## ❌ The gate fails: `tuned exact_match` is `0.600, a change of -0.200 [-0.3")
    assert title(ran).endswith("]`; `drop at most 0.02`")
    assert "| `tuned exact_match` | `at least 0.5` |  | `0.600 [0.4" in ran.stdout
    git("checkout", "-q", "-f", base)
    edit("gate.yaml", "confidence: 0.95", "confidence: 0.5")
    both = (run(before, "--head", head).stdout.split("\n") for before in (base, small.commit()))
    wide, narrow = ([line for line in text if line.startswith("| `tuned` | `exact_match` |")] for text in both)
    assert narrow
    assert wide != narrow


def test_a_regressed_answer_shows_request_expected_and_given(base: str) -> None:
    measure([False] + [True] * 80 + [False] * 19)
    record()
    ran = run(base)
    asked = "@@ {0} list @@\n  request  request {1}\n+ expected {2}\n- given    {3}\n"
    assert asked.format("r0", 0, RIGHT, WRONG) in listed(ran, "Regressed answers")
    assert asked.format("r80", 80, RIGHT, WRONG) in listed(ran, "Fixed answers")


@pytest.mark.parametrize("kind", ["minimum", "invariance"])
def test_a_regressed_behaviour_test_is_listed(base: str, kind: str) -> None:
    """What a variant has to be follows from the first answer, which another model gives otherwise."""
    case = {"id": "b1", "capability": f"{kind}-x", "requests": ["ask", "please ask"], "answers": ["a", "said"]}
    for passed in (True, False):
        expected = "first" if kind == "invariance" and passed else "x"
        write_rows(Path("metrics/behaviour.jsonl"), [case | {"passed": passed, "expected": expected}])
        head = record()
    shown = listed(run(f"{head}~1"), "Regressed behaviours")
    assert f"@@ b1 {kind}-x @@\n  request  ask → please ask\n+ expected x\n- given    said\n" in shown


def test_old_outcomes_show_ids_only(base: str) -> None:
    old = [{name: line[name] for name in ("id", "tuned")} for line in read_rows(Path(small.OUTCOMES))]
    for number in (0, 1):
        old[number]["tuned"] = {"verdict": "wrong"} if number else {"verdict": "exact"}
        small.answers(old)
        head = record()
    assert "```diff\n@@ r1 @@\n```" in listed(run(f"{head}~1"), "Regressed answers")


def test_a_name_of_a_data_version_is_a_base(base: str) -> None:
    [md5] = names.holders()
    put("data/README.md", f"| name | hash |\n|---|---|\n| grown | `{md5}` |\n")
    small.commit()
    assert "From `grown (" in run("grown").stdout


def test_the_working_tree_counts_with_what_is_not_added_yet_and_head_does_not(base: str) -> None:
    put(".gitignore", "/data/raw/ignored.jsonl\n")
    write_rows(Path("data/raw/new.jsonl"), [row(100), row(101)])
    write_rows(Path("data/raw/ignored.jsonl"), [row(102)])
    write_rows(Path("data/test/new.jsonl"), [row(200)])
    for name in ("notes.txt", "deeper/new.jsonl"):  # which no stage reads
        write_rows(Path("data/raw", name), [row(300)])
    ran = run(base)
    assert "From `" + base + "` to `working tree`" in ran.stdout
    assert "Training rows added (2)" in ran.stdout
    assert "Test rows added (1)" in ran.stdout
    assert "Training rows" not in run(base, "--head", "HEAD").stdout


@pytest.mark.parametrize("words", [["nowhere"], ["--output=x"], ["HEAD", "--head", "no\n::error"], []])
def test_what_is_not_a_commit_is_one_line_and_status_2(base: str, words: list[str]) -> None:
    ran = run(*words)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "\n::" not in ran.output


def test_slices_and_other_systems_stand_in_the_table(base: str) -> None:
    for missed in (0, 30):
        other = {"few_shot": {"verdict": "wrong", "answer": ""}}
        small.answers([small.outcome(n, n >= missed, slice="head" if n < 50 else "tail", **other) for n in range(100)])
        head = record()
    found = run(f"{head}~1").stdout
    assert "| `tuned` | `exact_match` `head` | 1.000 | 0.400 | -0.600 [-0.7" in found
    assert "| `tuned` | `exact_match` `tail` | 1.000 | 1.000 | +0.000 [" in found
    assert "| `few_shot` | `exact_match` | 0.000 | 0.000 |" in found
    assert found.count("| `tuned` | `exact_match` | ") == 1
    assert "| `tuned` | `json_valid` | 1.000 | 1.000 |" in found
    other |= {"new": {"verdict": "exact"}}
    small.answers([small.outcome(n, n >= 30, **other) for n in range(100)])
    ran = run(head, "--head", record())
    assert (ran.exit_code, "`new`" in ran.stdout) == (0, False)


def test_the_first_rule_names_the_metric_of_the_title(base: str) -> None:
    edit("gate.yaml", "metric: exact_match", "metric: json_valid")
    small.answers([small.outcome(n, n < 80, few_shot={"verdict": "exact"}) for n in range(100)])
    ran = run(record())
    assert title(ran).startswith("## ✅ The gate holds: `tuned` `json_valid` 1.000")
    assert "| `few_shot` | `json_valid` |" in ran.stdout


def test_every_rule_needs_its_system_on_both_sides(base: str) -> None:
    edit("gate.yaml", "rules:", "rules:\n  - {system: few_shot, metric: json_valid, tolerated_drop: 1, floor: 0}")
    few_shot, tuned = (line for line in Path("gate.yaml").read_text("utf-8").splitlines(True) if "system" in line)
    edit("gate.yaml", few_shot + tuned, tuned + few_shot)
    small.answers([small.outcome(n, n < 80, few_shot={"verdict": "exact"}) for n in range(100)])
    before = record()
    measure([True] * 80 + [False] * 20)
    ran = run(before, "--head", record())
    assert (ran.exit_code, "has no verdict of few_shot" in title(ran)) == (1, True)
    assert "The test set changed" not in ran.stdout


@pytest.mark.parametrize(
    ("wrong", "kinds", "moved"),
    [(6, ["list"] * 6 + [f"k{n % 19}" for n in range(94)], 0), (30, ["list"] * 40 + ["create"] * 60, 1)],
)
def test_kinds_that_moved_are_told_with_wider_intervals(base: str, wrong: int, kinds: list[str], moved: int) -> None:
    """6 of one kind lost: p = 0.031, which is evidence for one look and none for 20."""
    for lost in (0, wrong):
        small.answers([small.outcome(n, n >= lost, kind=kind, slice="one") for n, kind in enumerate(kinds)])
        head = record()
    found, count = run(f"{head}~1").stdout, len(set(kinds))
    assert f"Kinds of answer that moved: {moved} of {count}; each interval is widened for {count} looks." in found
    assert ("| `tuned` | `exact_match` `list` | 1.000 | 0.250 |" in found) == bool(moved)
    assert "`exact_match` `create`" not in found
    assert "`exact_match` `one`" not in found, "the only slice is the whole"


def test_noise_of_the_base_is_told_and_that_of_the_change_is_not_taken(base: str) -> None:
    noise = {"seeds": 8, "date": "2026-11-20", "spread": {"exact_match": 0.05}}
    noise |= {"computed_from": {"test": "t"}, "times_right": {"r45": 8, "r59": 4}}
    put("metrics/detail/evaluate.json", '{"computed_from":{"test":"t"}}')
    measure([True] * 60 + [False] * 40)
    put("metrics/experiments/seeds.json", json.dumps(noise))
    head = record()
    assert run(base, "--head", head).exit_code == 1
    measure([True] * 45 + [False] * 55)
    edit("gate.yaml", "floor: 0.5", "floor: 0.1")
    small.commit()
    record()
    ran = run(head)
    assert "Retraining noise: 0.0500, the standard deviation of 8 trainings on 2026-11-20" in ran.stdout
    assert "8 seeds measured: the interval is 1.2 times as wide as with many." in ran.stdout
    assert ", of these two models [" in ran.stdout
    assert "Regressed answers (14)" in ran.stdout
    assert "@@ r59 list @@" in listed(ran, "Regressed answers that flip with the seed alone, too")
    assert (ran.exit_code, "trainings` |" not in ran.stdout) == (0, True)
    git("checkout", "-q", head)
    edit("gate.yaml", "metric: exact_match", "metric: schema_valid")
    other = small.commit()
    lost = [small.outcome(n, n < 60) | ({"tuned": {"verdict": "not_json"}} if n > 58 else {}) for n in range(100)]
    small.answers(lost)
    record()
    assert "@@ r59 list @@" in listed(run(other), "Regressed answers"), "of exact matches only is it known"


def test_noise_counts_for_parts_of_the_test_rows_too(base: str) -> None:
    noise = {"seeds": 8, "date": "2026-11-20", "spread": {"exact_match": 0.1}, "times_right": {}}
    put("metrics/experiments/seeds.json", json.dumps(noise | {"computed_from": {"test": "t"}}))
    put("metrics/detail/evaluate.json", '{"computed_from":{"test":"t"}}')
    for lost in (0, 12):
        lines = [small.outcome(n, n >= lost, kind="list" if n < 40 else "other") for n in range(100)]
        small.answers([line | {"slice": line["kind"]} for line in lines])
        head = record()
    found = run(f"{head}~1").stdout
    assert "Kinds of answer that moved: 0 of 2" in found
    [part] = [line for line in found.split("\n") if "`exact_match` `list`" in line]
    assert part.endswith("about 80% power |")
    assert ", of these two models [-0.450, -0.175] |" in part


def test_recorded_trainings_of_the_base_stand_beside_the_one_committed(base: str) -> None:
    names, digits = sorted(f"r{number}" for number in range(100)), {"1": "1" * 80 + "0" * 20, "2": "1" * 90 + "0" * 10}
    times = {name: int(digits["1"][at]) + int(digits["2"][at]) for at, name in enumerate(names)}
    noise = {"seeds": 2, "date": "2026-11-20", "spread": {"exact_match": 0.001}, "times_right": times, "right": digits}
    put("metrics/detail/evaluate.json", '{"computed_from":{"test":"t","adapter":"a"}}')
    put("metrics/experiments/seeds.json", json.dumps(noise | {"computed_from": {"test": "t", "adapter": "a"}}))
    measure([True] * 80 + [False] * 20)
    before = record()
    ran = run(before)
    assert "| `tuned` | `exact_match` `mean of 2 and 2 trainings` | 0.850 | 0.850 | +0.000 [" in ran.stdout
    assert title(ran).startswith("## ✅ The gate holds: `tuned` `exact_match` 0.800 → 0.800")
    assert "2 seeds measured: the interval is 6.5 times as wide" in ran.stdout
    put("metrics/detail/evaluate.json", '{"computed_from":{"test":"t","adapter":"b"}}')
    head = record()
    assert "`mean of 2 and 1 trainings` | 0.850 | 0.800 | -0.050 [" in run(before, "--head", head).stdout


def nats(values: list[Any], first: int = 0) -> str:
    """A run with the likelihood of its answers."""
    lines = [{"id": f"r{first + n}", "group": "", "nats": value, "tokens": 9} for n, value in enumerate(values)]
    write_rows(Path("metrics/likelihood.jsonl"), lines)
    return record()


def test_likelihood_is_paired_beside_the_verdict(base: str) -> None:
    before = nats([2.0 + n % 7 for n in range(100)])
    after = nats([1.5 + n % 7 + n % 2 / 5 for n in range(99)])
    ran = run(before, "--head", after)
    assert "4.970 → 4.569 nats an answer, -0.401 [-0.421, -0.381] of these two models on 99 rows." in ran.stdout
    assert (ran.exit_code, title(ran).endswith("no evidence of a change")) == (0, True)
    assert run(after, "--head", nats([50.0] * 100)).exit_code == 0
    assert " → 0.000 nats an answer" in run(after, "--head", nats([0] * 100)).stdout
    assert "expected answers: not measured on both sides" in run(base, "--head", after).stdout
    small.answers([small.outcome(n, n < 80, group="talk") for n in range(100)])
    talk = nats([1.5 + n % 7 + n % 2 / 5 for n in range(99)])
    assert "-0.401 [-0.401, -0.401] of these two models" in run(before, "--head", talk).stdout


@pytest.mark.parametrize("value", ["1.0", True, -0.5, None, 1e300])
def test_a_likelihood_that_no_stage_writes_is_not_shown(value: Any, base: str) -> None:
    before = nats([1.0] * 100)
    assert "expected answers: not measured on both sides" in run(before, "--head", nats([value] * 100)).stdout


# A verdict that can't be bent


def test_a_change_is_judged_by_the_gate_that_it_found(base: str) -> None:
    edit("gate.yaml", "tolerated_drop: 0.02, floor: 0.5", "tolerated_drop: 1.0, floor: 0.0")
    measure([True] * 40 + [False] * 60)
    record()
    ran = run(base)
    assert ran.exit_code == 1
    assert "**What the gate goes by was changed**; it takes effect once this is merged: `gate.yaml`." in ran.stdout
    assert "tolerated_drop: 1.0, floor: 0.0" in listed(ran, "The gate")


def test_deleted_test_rows_fail_the_gate_in_its_title_unless_the_base_allows_it(base: str) -> None:
    measure([True] * 80)
    head = record()
    ran = run(base)
    assert ran.exit_code == 1
    words = "20 rows that the base has are gone: r80, r81, r82, r83, r84, …"
    assert title(ran) == f"## ❌ The gate fails: `data/test`: `{words}`"
    assert "**The test set changed** (20 removed); compared are the 80 rows that both sides have: `r80`" in ran.stdout
    assert "not shown" not in ran.stdout  # all 20 are
    git("checkout", "-q", base)
    edit("gate.yaml", "allow_removed_test_rows: false", "allow_removed_test_rows: true")
    small.commit()
    ran = run("HEAD", "--head", head)
    assert (ran.exit_code, title(ran).endswith("**The test set changed**")) == (0, True)


def test_rewritten_and_added_test_rows_are_told_and_left_out(base: str) -> None:
    lines = [small.outcome(n, n < 80) for n in range(110)]
    lines[99] |= {"expected": WRONG, "tuned": {"verdict": "exact"}}
    small.answers(lines)
    record()
    ran = run(base)
    counts = "(10 added, 1 edited); compared are the 99 rows that both sides have: `r99`."
    assert f"**The test set changed** {counts}" in ran.stdout
    assert "| 0 / 0 | 99 |" in ran.stdout
    assert title(ran).endswith("no evidence of a change. **The test set changed**")


def test_too_few_shared_rows_are_refused(base: str) -> None:
    small.answers([small.outcome(n, n < 80, expected=RIGHT if n < 29 else WRONG) for n in range(100)])
    head = record()
    ran = run(base)
    assert ran.exit_code == 2
    assert title(ran) == "## ⚪ Not compared: `29 test answers on both sides, 30 are needed`"
    git("checkout", "-q", "-f", base)
    edit("gate.yaml", "min_shared: 30", "min_shared: 29")
    assert run(small.commit(), "--head", head).exit_code == 0


def test_a_base_without_outcomes_is_refused_unless_the_head_is_at_fault(base: str) -> None:
    Path(small.OUTCOMES).unlink()
    before = small.commit()
    assert run(before).exit_code == 1
    git("checkout", "-q", base, "--", ".")
    ran = run(before)
    assert (ran.exit_code, "missing or empty" in title(ran)) == (2, True)


CONFLICT = "<" * 7 + " ours\n1\n" + "=" * 7 + "\r\n2\n" + ">" * 7 + " theirs\n"


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [(small.EVALUATE, "0.8", "0.9"), (small.OUTCOMES, '"tuned"', '"other"'), ("gate.yaml", "rules:", CONFLICT)],
)
def test_a_record_that_does_not_fit_fails_the_gate(base: str, path: str, old: str, new: str) -> None:
    edit(path, old, new)
    ran = run(base)
    assert ran.exit_code == 1, ran.output
    assert title(ran).startswith("## ❌ The gate fails: ")


YAML: dict[str, str | bytes] = {
    "python": "a: !!python/object/apply:os.system ['touch pwned']\n",
    "a loop": "a: &a [*a]\n",
    "no end": "stages: {a: {cmd: '${" + " " * 20_000 + "'}}\n",
    "a number": f"a: {'9' * 10_000}\nb: 1e999\n",
    "far away": "a: !!timestamp 0001-01-01T00:00:00+23:00\n",
    "odd tags": "a: !!bool nonsense\nb: !!float ''\n? [1, 2]\n: x\n",
    "odd shapes": "stages: {evaluate: [1]}\noutput: 7\ntrain: []\n",
    "no text": b"\xff\xfe\x00",
    "nothing": "",
    "a word": "x",
    "markup": "stages: {'</details><h1>@team': {cmd: '`x` | ::error::y', deps: ['![](https://x.example)']}}\n",
}
JSON: dict[str, str | bytes] = {
    "a huge rate": f'{{"tuned": {{"exact_match": {"9" * 400}}}}}',
    "a huge spread": f'{{"seeds":2,"date":"2026-11-20","spread":{{"exact_match":{"9" * 400}}}}}',
    "deep": "[" * 10_000,
    "numbers": f'{{"a": {"9" * 5_000}, "b": 1e999, "limits": [1e400]}}',
    "shapes": '{"limits": {"a": []}, "computed_from": [], "tuned": 7}',
    "a list": "[1, {}]",
    "no text": b"\xff\x00",
    "nothing": "",
}
SETTINGS = (".dvc/config", "params.yaml", "gate.yaml", "data/raw/x.jsonl.dvc")
FIGURES = [f"metrics/{name}" for name in ("detail/evaluate.json", "detail/retention.json", "retention.jsonl")]
FIGURES += [f"metrics/{name}" for name in ("behaviour.jsonl", "experiments/seeds.json", "timing/train.json")]
FIGURES += ["data/raw/rows.jsonl", "data/schema.json"]
HOSTILE = [([*files], name) for files in (["dvc.yaml"], ["dvc.lock"], SETTINGS) for name in YAML]
HOSTILE += [(files, name) for files in ([small.EVALUATE], [small.OUTCOMES], FIGURES) for name in JSON]


@pytest.mark.parametrize(("files", "name"), HOSTILE)
def test_hostile_files_neither_run_nor_crash_nor_hold(base: str, files: list[str], name: str) -> None:
    for file in files:
        put(file, (JSON if "json" in files[0] else YAML)[name])
    refuses(base)
    assert not Path("pwned").exists()


def refuses(base: str) -> str:
    ran = run(base)
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    assert ran.exit_code in (1, 2)
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(ran.stdout)
    kinds = {token.type for parent in tokens for token in [parent, *(parent.children or [])]}
    assert not kinds & {"image", "link_open", "html_inline", "autolink"}
    assert "\n::" not in ran.output
    return ran.output


def test_odd_file_names_come_out_inert(base: str) -> None:
    for name in (b"stages/\xff\n::error::x.py", b"stages/|`<h1>.py", b"data/raw/\xff.jsonl"):
        put(os.fsdecode(name), json.dumps(row(7, "@team</b>")))
    output = refuses(base)
    assert "`stages/\\udcff\\n:\\x3aerror:\\x3ax.py`" in output
    assert "`stages/\\x7c\\x60\\x3ch1>.py`" in output


def test_a_hand_made_limit_counts_by_its_numbers(base: str) -> None:
    made = {"what": "lost </td>", "value": -0.7, "low": 0.3, "high": 0.1, "limit": 0.2, "n": 3, "holds": True}
    put("metrics/detail/retention.json", json.dumps({"limits": [made]}))
    record()
    ran = run(base)
    assert ran.exit_code == 1
    assert "`lost \\x3c/td>`" in title(ran)
    put("metrics/detail/retention.json", json.dumps({"limits": [made | {"low": 0.0}]}))
    before = record()
    put("metrics/detail/retention.json", json.dumps({"limits": [made | {"low": 0.0, "n": 2}]}))
    record()
    ran = run(before)
    assert (ran.exit_code, title(ran).endswith("measured on 3 rows before, on 2 now`")) == (1, True)
    put("metrics/detail/retention.json", "{}")
    small.commit()


@pytest.mark.parametrize("error", [ArithmeticError, AttributeError, KeyError, TypeError, ValueError])
def test_a_record_of_a_shape_that_nobody_thought_of_fails(
    base: str, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def broken(tree: str) -> None:
        raise error

    monkeypatch.setattr("versions.record.problems", broken)
    ran = run(base)
    assert (ran.exit_code, "the record can't be followed" in title(ran)) == (1, True)


# What changed


def test_rows_are_followed_by_id_and_content(base: str) -> None:
    changed = [row(number) for number in range(20)]
    changed[1] = row(1, WRONG)
    changed[2] |= {"instruction": "something else", "output": WRONG}
    changed[7] |= {"instruction": "Request 7"}
    del changed[3]
    changed[4] |= {"output": json.dumps(json.loads(RIGHT), indent=2)}  # spelt otherwise, the same answer
    changed[5] |= {"id": "renumbered"}
    Path("data/raw/rows.jsonl").unlink()
    write_rows(Path("data/raw/moved.jsonl"), [*changed, row(50), row(6)])  # row 6 twice
    found = rows.between(base, history.working_tree(), "data/raw")
    names = {sort: [(new or old).id for old, new in pairs] for sort, pairs in found.items()}  # type: ignore[union-attr]
    assert names == {"added": ["r50", "r6"], "removed": ["r3"], "relabelled": ["r1"], "reworded": ["r2", "r7"]}
    shown = listed(run(base), "Training rows relabelled")
    assert f"@@ r1 @@\n- request  request 1\n- answer   {RIGHT}\n+ request  request 1\n+ answer   {WRONG}\n" in shown


TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": RIGHT}, {"role": "user", "content": "b"}]


def test_rows_without_an_id_and_conversations_are_known_by_all_that_they_ask(base: str) -> None:
    for answer in (RIGHT, WRONG):
        talk = {"id": "c", "messages": [*TALK, {"role": "assistant", "content": answer}]}
        write_rows(Path("data/raw/rows.jsonl"), [{"instruction": "No id here.", "output": answer}, talk, row(1)])
        head = record()
    found = rows.between(f"{head}~1", head, "data/raw")
    assert [sort for sort, pairs in found.items() if pairs] == ["relabelled"]
    shown = [(rows.request(new), rows.answer(new)) for _, new in found["relabelled"] if new]
    assert shown == [("No id here.", WRONG), ("a ⏎ b", f"{RIGHT} ⏎ {WRONG}")]


def test_an_unreadable_row_shows_itself(base: str) -> None:
    for name in ("rows", "again"):
        put(f"data/raw/{name}.jsonl", "{no json\n")
    shown = listed(run(base), "Training rows added")
    assert shown.count("@@ (no id) @@\n+ request  {no json\n+ answer   (not JSON") == 2


def test_settings_libraries_and_contract_are_shown_as_lines_that_differ(base: str) -> None:
    put("constraints.txt", f"torch==2.13.0 \\\n    --hash=sha256:{'a' * 64} \\\n    --hash=sha256:{'c' * 64}\n")
    put("metrics/timing/train.json", '{\n  "seconds": 10\n}\n')
    whole = {"Replayed prompts": "data/general/prompts.jsonl", "Data checklist": "metrics/validate.json"}
    whole |= {"Training": "metrics/train.json", "Labelling rules": "data/rules.yaml"}
    for path in whole.values():
        put(path, "-- 1\n")
    before = record()
    for path in whole.values():
        put(path, "++ 2\n")
    put("constraints.txt", f"torch==2.14.0 \\\n    --hash=sha256:{'b' * 64}\n")
    put("metrics/timing/train.json", '{\n  "seconds": 20\n}\n')
    put(".gitattributes", "* -diff\nparams.yaml diff=own\n")
    for name, value in (("color.ui", "always"), ("diff.external", "true"), ("diff.own.textconv", "true")):
        git("config", name, value)
    edit("params.yaml", "epochs: 3", "epochs: 4 # --hash=")
    edit("data/schema.json", "Task API action", "Another action")
    record()
    ran = run(before)
    assert "@@ b/params.yaml @@\n  train:\n-   epochs: 3\n+   epochs: 4 # --hash=\n```" in listed(ran, "Params")
    assert "- torch==2.13.0 \\\n+ torch==2.14.0 \\\n```" in listed(ran, "Pinned libraries")
    assert [name for name in whole if "- -- 1\n+ ++ 2\n" not in listed(ran, name)] == []
    assert "Another action" in listed(ran, "Contract, which scores each side's answers")
    assert '@@ b/metrics/timing/train.json @@\n-   "seconds": 10\n+   "seconds": 20\n```' in listed(ran, "Timing")
    Path("metrics/timing/train.json").unlink()
    assert "@@ a/metrics/timing/train.json @@" in listed(run(before), "Timing")


def test_changed_code_is_named_by_what_it_decides(base: str) -> None:
    judge = ["review/compare.py", ".github/workflows/report.yml", compare.SEEDS, "tools/__init__.py"]
    judge += ["scipy.py", "scipy/__init__.py", "click.so", "tools/report/__init__.cpython-311-x86_64-linux-gnu.so"]
    judge += ["stages/evaluate/__init__.py", "tools/__pycache__/report.cpython-311.pyc"]
    judge += ["scipy.pyc", "stages/__pycache__/evaluate.cpython-311.pyc"]
    code = ["dvc.yaml", "expectations/train.json", "stages/train.py"]
    tests = ["data/behaviour/minimum-x.jsonl", "data/general/items.jsonl", "data/general/text.jsonl"]
    put("jinja2", "a file, at first\n")
    base, held = small.commit(), "data/raw/big.jsonl.dvc"
    for name in [*judge, *code, *tests, held, "docs/x.md", "scipy/x.py", "tools/x/__init__.py"]:
        put(name, "x\n")
    Path("numpy.py").symlink_to("docs/x.md")
    Path("scipy/numpy").symlink_to("../docs")
    Path("jinja2").unlink()
    Path("jinja2").symlink_to("docs")
    found = {str(words)[:10]: names for words, names in changes.notes(base, small.commit())}
    assert found == {
        "⚠️ **What ": sorted([*judge, "jinja2", "numpy.py", "scipy/numpy"]),
        "Code of th": sorted([*code, *(name for name in judge if name.startswith("stages/"))]),
        "Tests besi": tests,
        "Files that": [held],
    }


def test_the_judging_code_is_what_the_report_imports() -> None:
    script = "import sys, tools.report, review.kept; from review import report; from stages.data import contract\n"
    script += "print(*[m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)], sep='\\n')"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {Path(name).relative_to(ROOT).as_posix() for name in ran.stdout.split("\n") if name.startswith(f"{ROOT}/")}
    own = {name for name in loaded if not name.startswith((".venv/", "tools/__init__", "stages/__init__"))}
    assert own
    assert not {name for name in own if not history.within(name, changes.JUDGE)}
