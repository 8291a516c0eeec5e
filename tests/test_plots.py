"""The pictures: what DVC's templates draw from the figures, the same bytes every time, and nothing from a network."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from conftest import ROOT

from stages.core import yaml12
from tools import plots

PLOTS = yaml12.parse((ROOT / "dvc.yaml").read_text(encoding="utf-8"), "dvc.yaml")["plots"]
NAMES = ["systems", "by_kind", "confusion", "loss", "learning_curve"]
FILES = {
    "metrics/plots/systems.csv": "system,exact_match,low,high,n\nfew_shot,0.25,0.125,0.5,40\n"
    "tuned,0.875,0.75,1.0,40\nzero_shot,0.0,0.0,0.0625,40\n",
    "metrics/plots/by_kind.csv": "kind,exact_match,low,high,n\nlist,0.9,0.8,0.95,30\ncreate,0.6,0.5,0.7,10\n",
    "metrics/plots/confusion.csv": "expected,given\n" + "list,list\n" * 28 + "list,create\n" * 2 + "create,create\n",
    "metrics/plots/train_loss.csv": "step,epoch,loss\n1,0.1,3.0\n2,0.2,0.5\n",
    "metrics/plots/valid_loss.csv": "step,epoch,loss\n2,0.2,0.7\n",
    "metrics/experiments/learning_curve.csv": "rows,same epochs,same epochs low,same epochs high,"
    "enough steps,enough steps low,enough steps high\n50,0.1,0.0,0.2,0.3,0.25,0.35\n100,0.5,0.4,0.6,0.7,0.6,0.8\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the plots and templates of this repository and figures of its own."""
    folder = tmp_path_factory.mktemp("plots")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    (folder / "dvc.yaml").write_text(json.dumps({"plots": PLOTS}), encoding="utf-8")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def specs(folder: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return plots.specs()


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314


def test_rates_stand_with_interval_and_n_from_the_lowest_up(specs: dict[str, Any]) -> None:
    shown = texts(plots.svg(specs["systems"], plots.LIGHT))
    assert [text for text in shown if "_shot" in text or text == "tuned"] == ["zero_shot", "few_shot", "tuned"]
    labels = {"0.000 [0.000, 0.063], n = 40", "0.250 [0.125, 0.500], n = 40", "0.875 [0.750, 1.000], n = 40"}
    assert labels <= set(shown)
    assert {"0.0", "1.0"} <= set(shown)


def test_bars_and_intervals_have_the_length_of_their_figures(specs: dict[str, Any]) -> None:
    drawn = plots.svg(specs["systems"], plots.LIGHT)
    bars = re.findall(r'aria-roledescription="bar" d="M0,[\d.]+h([\d.]+)', drawn)
    rules = re.findall(r'"rule mark" transform="translate\(([\d.]+),[\d.]+\)" x2="(-?[\d.]+)"', drawn)
    assert sorted(map(float, bars)) == [0, 100, 350]
    ends = sorted(tuple(sorted((float(start), float(start) + float(length)))) for start, length in rules)
    assert ends == [(0, 25), (50, 200), (300, 400)]


def test_the_matrix_counts_answers(specs: dict[str, Any]) -> None:
    assert [text for text in texts(plots.svg(specs["confusion"], plots.LIGHT)) if text.isdigit()] == ["28", "2", "1"]


def test_loss_and_learning_curve_name_their_lines(specs: dict[str, Any]) -> None:
    assert {"training", "held-out"} <= set(texts(plots.svg(specs["loss"], plots.LIGHT)))
    assert {"same epochs", "enough steps"} <= set(texts(plots.svg(specs["learning_curve"], plots.LIGHT)))


@pytest.mark.parametrize("name", NAMES)
def test_no_figure_is_lost_on_the_way(specs: dict[str, Any], name: str) -> None:
    assert not re.search("NaN|undefined|null", plots.svg(specs[name], plots.LIGHT))


def test_dark_differs_from_light_in_text_and_grid_only(specs: dict[str, Any]) -> None:
    light, dark = (plots.svg(specs["systems"], colours) for colours in (plots.LIGHT, plots.DARK))
    assert not any(colour in dark for colour in plots.LIGHT)
    for its, other in zip(plots.DARK, plots.LIGHT, strict=True):
        dark = dark.replace(its, other)
    assert dark == light


def test_two_runs_write_equal_bytes_and_a_page_that_loads_nothing(folder: Path, tmp_path: Path) -> None:
    for number in "12":
        options = ["--pictures", str(tmp_path / number), "--page", str(tmp_path / number / "page.html")]
        env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": number}
        subprocess.run([sys.executable, "-m", "tools.plots", *options], cwd=folder, env=env, check=True)
    first, second = ({file.name: file.read_bytes() for file in (tmp_path / number).iterdir()} for number in "12")
    assert first == second
    assert plots.DARK[0] in first["systems-dark.svg"].decode()
    assert set(first) == {"systems-dark.svg", "systems-light.svg", "page.html"}
    page = first["page.html"].decode()
    assert re.findall(r'<figure id="(\w+)">', page) == NAMES
    assert not re.search(r"<script|<link|@import|\bsrc=|\bhref=|url\(", page)


def test_what_has_no_data_is_named_and_no_result_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "metrics" / "plots" / "systems.csv").unlink()
    ran = CliRunner().invoke(plots.main)
    assert (ran.exit_code, "not drawn, no data: systems" in ran.output) == (1, True)
    assert "run `dvc repro` first" in ran.output


def test_what_dvc_says_against_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "no such plot\n"))
    ran = CliRunner().invoke(plots.main)
    assert (ran.exit_code, ran.stderr) == (1, "Error: `dvc plots show` fails: no such plot\n")


def test_the_committed_picture_shows_the_committed_figures() -> None:
    metrics = json.loads((ROOT / "metrics" / "evaluate.json").read_text(encoding="utf-8"))
    shown = texts((ROOT / "docs" / "pictures" / "systems-light.svg").read_text(encoding="utf-8"))
    for system in (name for name, part in metrics.items() if "n" in part):
        rate, low, high = (metrics[system][f"exact_match{end}"] for end in ("", "_low", "_high"))
        label = f"{rate:.3f} [{low:.3f}, {high:.3f}], n = {metrics[system]['n']}"
        assert label in shown, "run: python -m tools.plots"
