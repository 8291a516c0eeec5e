"""tools.bisect names the version that was spoiled on purpose, and only on evidence."""

from datetime import date
from pathlib import Path

import pytest
import small
import toy
from click.testing import CliRunner
from conftest import write_rows

from review import compare, rows
from review.compare import Rule
from tools import bisect
from versions import history, names


def bisected(code: int, *arguments: str) -> str:
    result = CliRunner().invoke(bisect.main, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def short(repository: Path, rev: str) -> str:
    return toy.run(repository, "git", "rev-parse", rev)[:7]


def test_the_version_that_broke_it_is_named_with_its_own_step_and_the_report_to_read(repository: Path) -> None:
    output = bisected(0, "first", "last")
    large, broken = (short(repository, f"v-{name}") for name in ("large", "broken"))
    assert f"first worse than the start: broken ({broken})" in output
    assert f"its own step, from large ({large}): 1.000 to 0.700, difference -0.300" in output
    assert "0 fixed, 12 regressed of 40, p = 0.00049: worse" in output
    assert output.endswith(f"python -m tools.report {large} --head {broken}\n")


def test_commits_and_names_say_the_same_and_the_end_is_head(repository: Path) -> None:
    assert bisected(0, "v-large") == bisected(0, "large", "last") == bisected(0, "large", "HEAD")


def test_nothing_is_named_where_nothing_got_worse(repository: Path) -> None:
    assert "no recorded version has a worse tuned.exact_match" in bisected(3, "first", "large")
    assert "no recorded version has a worse tuned.json_valid" in bisected(
        3, "first", "last", "--metric", "tuned.json_valid"
    )


@pytest.mark.parametrize("rev", ["HEAD", "v-first"])
@pytest.mark.parametrize(("spread", "code"), [(0.01, 0), (0.1, 3)])
def test_a_drop_that_retraining_may_bring_is_not_blamed_on_rows(
    repository: Path, monkeypatch: pytest.MonkeyPatch, spread: float, code: int, rev: str
) -> None:
    known = {short(repository, rev): compare.Noise(8, date(2026, 11, 20), {"exact_match": spread})}
    monkeypatch.setattr(compare, "noise", lambda commit: known.get(commit[:7]))
    assert "about a retraining, of which 8 seeds were measured:" in bisected(code, "first", "HEAD")
    assert "retraining apart" in bisected(1, "first", "HEAD", "--metric", "nobody.exact_match")


@pytest.mark.parametrize(("versions", "lost", "code"), [(1, 6, 0), (1, 5, 3), (5, 6, 3), (5, 8, 0)])
def test_each_look_gets_its_share_of_the_level(
    repository: Path, monkeypatch: pytest.MonkeyPatch, versions: int, lost: int, code: int
) -> None:
    """6 of 40 lost: p = 0.031, which is evidence for one look and none for five. 8 are, of which 7 would not be."""
    way = [bisect.Step(f"{number}", f"{number}", True) for number in range(versions + 1)]

    def outcomes(commit: str, _: list[str]) -> compare.Outcomes:
        spoiled = {"4": 1, str(versions): lost}.get(commit, 0)
        verdicts = ["wrong" if n < spoiled else "exact" for n in range(40)]
        texts = ("", "", "", "")
        return {str(n): compare.Outcome(str(n), str(n), *texts, {"tuned": v}, {}) for n, v in enumerate(verdicts)}

    monkeypatch.setattr(bisect, "steps", lambda good, bad: way)
    monkeypatch.setattr(rows, "between", lambda *_: {"relabelled": [], "reworded": []})
    monkeypatch.setattr(compare, "outcomes", outcomes)
    monkeypatch.setattr(history, "changed_files", lambda before, after: [])
    monkeypatch.setattr(names, "commit_of", lambda rev: rev)
    monkeypatch.setattr(compare, "noise", lambda commit: None)
    said = bisected(code, "0", str(versions))
    assert ("its own step, from 4 (4): 0.975 to 0.800" in said) == (versions == 5 and code == 0)


def unrecorded(repository: Path) -> None:
    """After 'grown': rows committed without a run, then more rows with one, which is bad."""
    toy.run(repository, "git", "checkout", "--quiet", "v-grown")
    toy.run(repository, "dvc", "checkout", "--quiet")
    (repository / "data" / "raw" / "big.jsonl").unlink(missing_ok=True)
    write_rows(repository / "data" / "raw" / "c.jsonl", [toy.row("c1")])
    toy.commit(repository, "rows without a run")
    toy.run(repository, "git", "tag", "without")
    write_rows(repository / "data" / "raw" / "d.jsonl", [toy.row("d1", "poison")])
    toy.record(repository, "with")


def test_a_version_without_metrics_may_be_the_culprit_and_is_named(repository: Path) -> None:
    unrecorded(repository)
    without = short(repository, "without")
    assert f"nothing is recorded for {names.data_hashes(['without'])[0]}"[:36] in bisected(4, "v-grown", "v-with")
    assert f"({without}) has no recorded metrics" in bisected(4, "v-grown", "without")
    assert f"({without}) has no recorded metrics to compare with" in bisected(4, "without", "v-with")


def test_rows_committed_before_their_run_are_no_version_without_metrics(repository: Path) -> None:
    unrecorded(repository)
    write_rows(repository / "data" / "raw" / "d.jsonl", [toy.row("d1", "poison"), toy.row("d2")])
    toy.commit(repository, "rows")
    toy.record(repository, "run")
    assert [step.measured for step in bisect.steps(*map(history.resolve, ("v-with", "v-run")))] == [True, True]


def test_a_merge_is_one_step(repository: Path) -> None:
    side = toy.forge(repository, {"data/raw/side.jsonl": b"{}\n"}, "v-large")
    words = ["commit-tree", "-p", "HEAD", "-p", side, "-m", "merge", "HEAD^{tree}"]
    merge = toy.run(repository, "git", *words).strip()
    assert side not in [step.commit for step in bisect.steps(history.resolve("v-large"), merge)]
    assert [step.commit for step in bisect.steps(side, merge)] == [side, merge]  # not what the trunk had before


def test_a_version_without_rows_in_git_is_named(repository: Path) -> None:
    pointer = b"outs: [{path: other.jsonl}]"
    without = toy.forge(repository, {"data/raw/old.jsonl.dvc": pointer})
    assert f"{without[:7]} has no data/raw, or a pointer there" in bisected(1, "first", without)


def test_a_version_that_ran_later_still_counts_where_it_came_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(version: int) -> None:
        write_rows(Path("data/raw/rows.jsonl"), [small.row(number) for number in range(20 + version)])

    first = small.start(tmp_path, monkeypatch)
    rows(1)
    small.commit("not run")
    for version in (2, 1):
        rows(version)
        small.measure([True] * 40 + [False] * 60)
        last = small.record()
    assert [step.measured for step in bisect.steps(first, last)] == [True, False, True, True]


def test_a_drop_without_new_rows_is_not_blamed_on_rows(repository: Path) -> None:
    toy.run(repository, "git", "checkout", "--quiet", "v-large")
    toy.run(repository, "dvc", "checkout", "--quiet")
    source = repository / "stages" / "toy.py"
    source.write_text(toy.STAGE.replace("else 0", "else 12"), encoding="utf-8")
    Path("dvc.yaml").write_text(
        toy.PIPELINE.replace("deps: [data/test, models", "deps: [stages/toy.py, data/test, models")
    )
    toy.run(repository, "dvc", "repro", "--quiet")
    toy.commit(repository, "bad code")
    output = bisected(3, "v-first", "HEAD")
    assert "the data is the same as at" in output
    assert "dvc.yaml, stages/toy.py" in output


def test_test_rows_that_changed_are_left_out_of_the_pairs(repository: Path) -> None:
    changed = [toy.row(f"t{number:02}", "no" if number < 2 else "yes") for number in range(40)]
    changed[2] |= {"instruction": "quite another request"}
    write_rows(repository / "data" / "test" / "rows.jsonl", changed)
    write_rows(repository / "data" / "raw" / "e.jsonl", [toy.row("e1")])
    toy.record(repository, "tests")
    good, bad = (bisect.Step(commit, "", True) for commit in ("v-large", "v-tests"))
    result = bisect.compared(good, bad, Rule("tuned", "exact_match", 0.0, 0.0), 0.95, None)
    assert (result.n, result.regressed) == (37, 9)


def test_what_changed_in_the_same_step_is_named(repository: Path) -> None:
    toy.run(repository, "git", "checkout", "--quiet", "v-grown")
    toy.run(repository, "dvc", "checkout", "--quiet")
    (repository / "data" / "raw" / "big.jsonl").unlink(missing_ok=True)
    write_rows(repository / "data" / "raw" / "d.jsonl", [toy.row("d1", "poison")])
    Path("params.yaml").write_text("train: {epochs: 9}\n", encoding="utf-8")
    write_rows(Path("data/test/more.jsonl"), [toy.row("t99")])
    causes = ["constraints.txt", "data/general/prompts.jsonl", "data/rules.yaml", "data/schema.json"]
    for name in (*causes, "expectations/train.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("[]\n", encoding="utf-8")
    toy.record(repository, "both")
    causes += ["data/test/more.jsonl", "expectations/train.json", "params.yaml"]
    assert f"changed in the same step: {', '.join(causes)}\n" in bisected(0, "v-grown", "v-both")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("last", "first"), "is not an ancestor of"),
        (("first", "last", "--metric", "tuned.nothing"), "one of exact_match"),
        (("first", "last", "--metric", "nobody.exact_match"), "verdict of nobody"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(repository: Path, arguments: tuple[str, ...], reason: str) -> None:
    assert reason in bisected(1, *arguments)
