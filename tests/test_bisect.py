"""tools.bisect names the version that was spoiled on purpose, and only on evidence."""

from pathlib import Path

import pytest
import toy
from click.testing import CliRunner
from conftest import write_rows

from stages.shared import rows
from tools import bisect
from tools.bisect import main


def bisected(code: int, *arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def unrecorded(repository: Path, output: str, extra: str = "c1") -> None:
    """After 'grown': rows committed without a run, then more rows with one, which is bad."""
    toy.run(repository, "git", "checkout", "--quiet", "v-grown")
    toy.run(repository, "dvc", "checkout", "--quiet")
    (repository / "data" / "raw" / "big.jsonl").unlink(missing_ok=True)
    write_rows(repository / "data" / "raw" / "c.jsonl", [toy.row(extra, output)])
    toy.commit(repository, "rows without a run")
    toy.run(repository, "git", "tag", "without")
    write_rows(repository / "data" / "raw" / "d.jsonl", [toy.row("d1", "poison")])
    toy.record(repository, "with")


def test_the_version_that_broke_it_is_named_with_its_rows(repository: Path) -> None:
    output = bisected(0, "first", "last")
    broken = toy.run(repository, "git", "rev-parse", "v-broken")[:7]
    assert (
        f"broken ({broken}) made tuned.exact_match worse: 1.000 to 0.700, 0 gained, 12 lost of 40, p = 0.00049"
        in output
    )
    assert "added: 1 rows\n  c1  request c1  yes" in output
    assert "removed: 1 rows\n  b1  request b1  yes" in output
    assert "relabelled: 1 rows\n  a2  request a2  yes -> poison\\u001b[31m" in output
    assert "\x1b" not in output


def test_commits_and_names_say_the_same(repository: Path) -> None:
    assert bisected(0, "v-large", "HEAD") == bisected(0, "large", "last")


def test_nothing_is_named_where_nothing_got_worse(repository: Path) -> None:
    assert "no version has a worse tuned.exact_match" in bisected(3, "first", "large")
    assert "no version" in bisected(3, "first", "last", "--lower-is-better")


def test_a_metric_without_single_answers_is_judged_by_its_intervals(repository: Path) -> None:
    assert "intervals apart" in bisected(0, "first", "last", "--metric", "tuned.field_f1")


def test_a_small_drop_is_no_evidence(repository: Path) -> None:
    source = repository / "stages" / "toy.py"
    source.write_text(toy.STAGE.replace("spoiled = 12", "spoiled = 5"), encoding="utf-8")
    write_rows(repository / "data" / "raw" / "e.jsonl", [toy.row("e1")])
    toy.run(repository, "dvc", "repro", "--quiet", "--force", "evaluate")
    toy.commit(repository, "five lost")
    good = bisect.steps("v-large", "HEAD")
    change = bisect.compare(good[0].measured[0], good[-1].measured[0], "tuned.exact_match", lower_is_better=False)
    assert (change.worse, change.better) == (False, False)
    assert "5 lost of 40, p = 0.062" in change.why


def test_a_version_without_metrics_is_found_in_the_run_cache(repository: Path) -> None:
    unrecorded(repository, "poison")
    toy.run(repository, "git", "checkout", "--quiet", "--detach", "without")
    toy.run(repository, "dvc", "repro", "--quiet")
    toy.run(repository, "git", "checkout", "--quiet", "--force", "v-with")
    before = (repository / "ran.log").read_bytes()
    output = bisected(0, "v-grown", "v-with")
    assert "run cache at" in output
    assert "request c1  poison" in output
    assert (repository / "ran.log").read_bytes() == before


def test_without_metrics_anywhere_the_version_is_named_and_run_measures_it(repository: Path) -> None:
    unrecorded(repository, "yes")
    without, done = (toy.run(repository, "git", "rev-parse", name)[:7] for name in ("without", "v-with"))
    assert f"({without}), and not in the run cache: --run" in bisected(4, "v-grown", "v-with")
    before = toy.state(repository)
    output = bisected(0, "v-grown", "v-with", "--run")
    assert f"run again at {without}: 1.000 to 1.000" in output
    assert f"({done}) made tuned.exact_match worse" in output
    assert "added: 1 rows\n  d1" in output
    assert toy.state(repository) == before
    assert toy.run(repository, "git", "worktree", "list").count("\n") == 1


def test_a_version_on_which_nothing_hangs_is_not_run(repository: Path) -> None:
    unrecorded(repository, "yes")
    write_rows(repository / "data" / "raw" / "f.jsonl", [toy.row("f1")])
    toy.commit(repository, "more rows without a run")
    write_rows(repository / "data" / "raw" / "g.jsonl", [toy.row("g1")])
    toy.record(repository, "end")
    output = bisected(0, "v-with~2", "v-end", "--run")
    assert output.count("no metrics recorded for") == 1


def test_a_drop_without_new_rows_is_not_blamed_on_rows(repository: Path) -> None:
    toy.run(repository, "git", "checkout", "--quiet", "v-large")
    toy.run(repository, "dvc", "checkout", "--quiet")
    source = repository / "stages" / "toy.py"
    source.write_text(toy.STAGE.replace("else 0", "else 12"), encoding="utf-8")
    toy.run(repository, "dvc", "repro", "--quiet", "--force", "evaluate")
    toy.commit(repository, "bad code")
    output = bisected(3, "v-first", "HEAD")
    assert "on the same data" in output
    assert "stages/toy.py changed" in output


def test_test_rows_that_changed_are_left_out_of_the_pairs(repository: Path) -> None:
    changed = [toy.row(f"t{number:02}", "no" if number < 2 else "yes") for number in range(40)]
    write_rows(repository / "data" / "test" / "rows.jsonl", changed)
    write_rows(repository / "data" / "raw" / "e.jsonl", [toy.row("e1")])
    toy.record(repository, "tests")
    output = bisected(0, "first", "HEAD")
    assert "10 lost of 38" in output


def test_what_changed_beside_the_rows_is_said(repository: Path) -> None:
    toy.run(repository, "git", "checkout", "--quiet", "v-grown")
    toy.run(repository, "dvc", "checkout", "--quiet")
    (repository / "data" / "raw" / "big.jsonl").unlink(missing_ok=True)
    write_rows(repository / "data" / "raw" / "d.jsonl", [toy.row("d1", "poison")])
    Path("params.yaml").write_text("train: {epochs: 9}\n", encoding="utf-8")
    toy.record(repository, "both")
    assert "these changed as well: params.yaml" in bisected(0, "v-grown", "v-both")


def test_questions_that_cannot_be_asked(repository: Path) -> None:
    assert "is not an ancestor of" in bisected(1, "last", "first")
    assert "has no number at tuned.nothing" in bisected(1, "first", "last", "--metric", "tuned.nothing")
    assert "neither a commit" in bisected(1, "nowhere", "last")


def row(name: str, request: str, answer: str) -> rows.Row:
    turns = ({"role": "user", "content": request}, {"role": "assistant", "content": answer})
    return rows.Row("f", 1, name, turns, "", "")


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ([row("1", "a", "x")], [row("2", "a", "x")], (0, 0, 0)),
        ([row("1", "a", "x")], [row("1", "a", "y")], (0, 0, 1)),
        ([row("1", "a", "x")], [row("1", "b", "x")], (1, 1, 0)),
        ([], [row("1", "a", "x"), row("2", "b", "x")], (2, 0, 0)),
    ],
)
def test_rows_are_told_apart_by_request_and_answer(
    before: list[rows.Row], after: list[rows.Row], counts: tuple[int, int, int]
) -> None:
    changes = bisect.row_changes(before, after)
    assert (len(changes.added), len(changes.removed), len(changes.relabelled)) == counts
