"""README and docs name things that exist, and what they show is the committed result."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from conftest import SHIPPED

from tools import report, table
from versions import history

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DECIDING = (ROOT / "docs" / "deciding.md").read_text(encoding="utf-8")
MEND = "python -m tools.table --write README.md --write docs/deciding.md"
PAGES = [ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md")]
PAGES += [ROOT / name / "README.md" for name in ("benchmarks", "data")]
PAGES += (ROOT / "data" / "behaviour").glob("README.md")
PAGES += sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_target_and_link_exists(page: Path) -> None:
    text = re.sub(r"`python -m [^`]+` at commit", "", page.read_text(encoding="utf-8"))  # of what is gone since
    modules = set(re.findall(r"python -m ((?:stages|tools|benchmarks|experiments)\.\w+)", text))
    assert all((ROOT / module.replace(".", "/")).with_suffix(".py").is_file() for module in modules), modules
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE))
    assert all(f"\n{target}:" in makefile for target in targets), targets
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    assert all((page.parent / link).is_file() for link in links), links


def test_the_readme_leads_to_every_page() -> None:
    assert all(f"({page.relative_to(ROOT)})" in README for page in PAGES if page.parent.name == "docs")
    assert {"make repro", "make test", "python -m tools.ask"} <= set(
        re.findall(r"make \w+|python -m tools\.ask", README)
    )


@SHIPPED
def test_the_verdict_of_the_readme_is_what_its_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if not (ROOT / ".git").exists() or history.is_shallow():
        pytest.skip("the history is not here")
    [(base, head)] = re.findall(r"`python -m tools\.report (\w+) --head (\w+)`", README)
    if subprocess.run(["git", "cat-file", "-e", f"{base}^{{commit}}"], check=False).returncode:  # noqa: S607
        pytest.skip("this is a copy with a history of its own")
    printed = iter(CliRunner().invoke(report.main, [base, "--head", head]).output.split("\n"))
    shown = re.findall(r"^> (.+)$", README, re.MULTILINE)
    assert len(shown) > 12
    assert [line for line in shown if line not in printed] == []  # `in` goes on from the line before: in this order


@SHIPPED
def test_the_sizes_of_the_folders_that_are_shipped() -> None:
    page = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
    outs = [
        out for stage in yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"].values() for out in stage["outs"]
    ]
    sizes = {out["path"]: f"{out['size'] / 1e6:.0f} MB" for out in outs}
    assert f"safetensors folder of {sizes['models/merged']}" in page
    assert f"a GGUF file ({sizes['models/gguf']} at 8 bits)" in page


@SHIPPED
def test_the_readme_says_of_what_its_figures_are() -> None:
    lines = (ROOT / "metrics" / "behaviour.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line) for line in lines]
    [(request, answer)] = re.findall(r'^\$ python -m tools\.ask "(.*)"\n(.*)\ncontract: ok$', README, re.MULTILINE)
    assert [row["answers"] for row in asked if row["requests"] == [request]] == [[answer]]
    assert request not in "".join(file.read_text(encoding="utf-8") for file in (ROOT / "data" / "raw").glob("*.jsonl"))
    files = {name: (ROOT / "data" / "test" / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("head", "tail")}
    head, tail = (text.count("\n") for text in files.values())
    answers = read("metrics/detail/evaluate.json")["systems"]["tuned"]["n"]
    for words in (f"{head + tail} rows that we wrote", f"({head} rows)", f"({tail})", f"hence {answers} answers"):
        assert words in README, words
    minutes = read("metrics/timing/train.json")["seconds"] / 60
    assert f"{minutes:.0f} of them training" in README
    typos = [row["passed"] for row in asked if row["capability"] == "invariance-typo"]
    assert f"{sum(typos)} of {len(typos)} leave the answer as it is" in README


@pytest.mark.parametrize(("page", "mark"), [("README.md", "table"), ("docs/deciding.md", "kept")])
def test_a_generated_table_is_the_committed_result(page: str, mark: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert f"<!-- {mark} -->" in text
    assert table.put_all(text, table.read(ROOT / "metrics" / "detail")) == text, f"run: {MEND}"


def test_constraints_hold_every_dependency_by_exact_version_and_hash() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = {*project["project"]["dependencies"], *project["dependency-groups"]["dev"]}
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8").replace(" \\\n    --hash=", " --hash=")
    lines = [line for line in text.split("\n")[:-1] if not line.startswith("#")]
    exact = r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*( ; [^-]+)?( --hash=sha256:[0-9a-f]{64})+"
    assert [line for line in lines if not re.fullmatch(exact, line)] == []
    pinned = {re.sub(r"[_.]", "-", line.split("==")[0].lower()) for line in lines}
    assert {name.lower().replace(".", "-") for name in wanted} <= pinned


def read(file: str) -> Any:
    return json.loads((ROOT / file).read_text(encoding="utf-8"))


def test_the_measurements_on_show_are_those_of_the_files() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    kinds = {"": "CPU with bfloat16 instructions", "_without_bf16": "the same CPU", "_without_amx": "Intel Xeon"}
    for kind, row in kinds.items():
        file = f"train_cpu{kind}"
        found = read(f"benchmarks/{file}.json")
        speeds = [found[side]["tokens_per_cpu_second"] for side in ("trl_defaults", "lockstep")]
        line = next(line for line in page.split("\n") if line.startswith(f"| {row}"))
        assert line.endswith(f"| {speeds[0]:.0f} | {speeds[1]:.0f} | {found['ratio']:.1f} |"), line
    for name, shape in read("benchmarks/memory.json")["shapes"].items():
        sizes = " | ".join(f"{shape[f'{kind}_bytes'] / 1e9:.2f} GB" for kind in ("predicted", "measured"))
        assert f"| {name} | {shape['parameters'] / 1e6:.0f} M | {shape['tokens']} | {sizes} | " in page, name
    shapes = read("benchmarks/memory_fp32.json")["shapes"].values()
    short = [1 - shape["predicted_bytes"] / shape["measured_bytes"] for shape in shapes]
    assert f"too low, by\n{min(short):.0%} to {max(short):.0%}" in page
    for name, found in read("benchmarks/latency.json")["systems"].items():
        times = "{p50_ms:.0f} ms | {p95_ms:.0f} ms [{p95_ms_low:.0f}, {p95_ms_high:.0f}] | +{prefix_ms:.0f} ms"
        assert f"{times.format(**found)} | {found['answers_per_second']:.2f} |" in page, name
    spins = read("benchmarks/spinning.json")["tokens_per_second"]
    for count, quiet in spins["alone"].items():
        assert f" | {quiet:.0f} | {spins['beside_one_busy_process'][count]:.0f} |" in page, count
    for stage in ("validate", "build", "report"):
        for size in read(f"benchmarks/scale_{stage}.json")["sizes"]:
            line = f"| {stage} | {{rows:,}} | {{seconds}} | {{cpu_seconds}} | {{peak_mb}} MB |".format(**size)
            assert line in page, line
    load = read("benchmarks/serve.json")
    assert "{answered} of {requests} answered, {lost} lost".format(**load) in page
    assert f"p95 {load['p95_ms'] / 1000:.1f} s" in page
    for module, found in read("benchmarks/mutants.json")["modules"].items():
        left = found["survived"] - found["equivalent"]
        counts = " | ".join(str(found[name]) for name in ("mutants", "killed", "survived", "equivalent"))
        assert found["killed"] + found["survived"] == found["mutants"], module
        assert found["equivalent"] == len(found["judged_equivalent"]), module
        assert f"| `{module}` | {counts} | {1 - left / (found['mutants'] - found['equivalent']):.1%} |" in page, module


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("repro", ["tools.mend", "dvc repro build\n", "tools.plan --check", "dvc repro\n", MEND]),
        ("pages", [MEND, "experiments.page docs/experiments.md", "tools.plots"]),
        ("repro PULL=1", ["dvc repro build --pull\n", "dvc repro --pull\n", MEND, "experiments.page", "tools.plots"]),
        ("test", ["ruff check .\n", "ruff format --check .\n", "mypy\n", "zizmor ", "check-jsonschema ", "loadfile\n"]),
        ("clean", ["rm -rf .venv .mypy_cache .pytest_cache .ruff_cache mutants\n"]),
    ],
)
def test_make_runs_these_commands_in_this_order(target: str, words: list[str]) -> None:
    command = ["make", "--dry-run", *target.split()]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    places = [ran.stdout.find(word) for word in words]
    assert -1 not in places
    assert places == sorted(places)
