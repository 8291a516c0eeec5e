from dataclasses import dataclass
from pathlib import Path

import pytest

from stages.core import params, yaml12


@dataclass(frozen=True)
class Sample:
    rate: params.Positive
    count: params.Count
    name: str | None
    share: params.Share = 1.0


@dataclass(frozen=True)
class Particular:
    odour: int

    def __post_init__(self) -> None:
        raise ValueError(f"odour can't be {self.odour}")


def load(folder: Path, text: str) -> Sample:
    file = folder / "params.yaml"
    file.write_text(text, encoding="utf-8")
    return params.load("sample", Sample, file)


def test_reads_a_section(tmp_path: Path) -> None:
    assert load(tmp_path, "sample: {rate: 1e-3, count: 2, name: null}") == Sample(0.001, 2, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-3", 0.001), ("1.5", 1.5), (".inf", float("inf")), ("-7", -7), ("0x1F", 31), ("010", 10)],
        *[("1:30", "1:30"), ("no", "no"), ("2026-01-02", "2026-01-02"), ("1_000", "1_000"), ("~", None)],
        *[("True", True), ("yes", "yes"), ("'1'", "1"), ("", None)],
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = yaml12.parse(f"a: {text}", "x.yaml")["a"]
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    "text",
    [
        *("- a", "a: 1\na: 2", "a: {b: 1, b: 2}", "a: !!python/object:os.system x", "[" * 2000, "a: *b"),
        *("a: !!timestamp x", "a: !!bool x", "a: !!int x", "? [a]\n: 1"),
    ],
)
def test_yaml_that_is_no_plain_mapping_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"x\.yaml"):
        yaml12.parse(text, "x.yaml")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("sample: {rate: 1.0, count: 2}", "sample.name"),
        ("sample: {rate: 1.0, count: 2, name: a, extra: 1}", "sample.extra"),
        ("sample: {rate: '1.0', count: 2, name: a}", "sample.rate"),
        ("sample: {rate: 1.0, count: true, name: a}", "sample.count"),
        ("sample: {rate: 1.0, count: 0, name: a}", "sample.count"),
        ("sample: {rate: .nan, count: 1, name: a}", "sample.rate"),
        ("sample: {rate: 0, count: 1, name: a}", "sample.rate"),
        ("sample: {rate: 1, count: 1, name: a, share: 1.01}", "sample.share"),
        ("sample: {rate: 1, count: 1, name: a, share: -0.01}", "sample.share"),
        ("sample: 3", "sample"),
        ("other: {}", "'sample' is missing"),
        ("sample: [", "params.yaml"),
    ],
)
def test_refuses_and_names(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(params.ParamsError, match=named.replace(".", r"\.")):
        load(tmp_path, text)


def test_a_section_s_own_check_speaks_for_itself(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("sample: {odour: 1}", encoding="utf-8")
    with pytest.raises(params.ParamsError) as caught:
        params.load("sample", Particular, tmp_path / "params.yaml")
    assert caught.value.message == f"{tmp_path / 'params.yaml'}: sample: odour can't be 1"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(params.ParamsError, match="nowhere"):
        params.load("sample", Sample, tmp_path / "nowhere.yaml")
