"""YAML files: what is refused, with the line, and that it is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from arvid.cli import main
from arvid.errors import UserError
from arvid.evaluation.protocols import read_protocol
from arvid.yaml_files import MAX_BYTES, MAX_DEPTH, check_yaml, load_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 40)
)
"""Forty lines for 10^40 values."""

REFUSED = {
    "twice": ("a: 1\nb: {c: 2, d: 3, c: 4}\n", r"duplicate key 'c' \(line 2\)"),
    "twice outside": ("lr: 1\nother: 2\nlr: 3\n", r"duplicate key 'lr' \(line 3\)"),
    "bomb": (LAUGHS, "more than 100,000 values"),
    "merged bomb": (LAUGHS.replace("a1:", "<<:", 1), "more than 100,000 values"),
    "itself": ("a: &a [1, *a]\n", r"\*a contains itself"),
    "deep": ("[" * 100_000, f"more than {MAX_DEPTH} levels deep"),
    "long": (f"a: {'x' * MAX_BYTES}", "characters, more than"),
    "unclosed": ("a: [1", "not readable as YAML"),
    "unknown anchor": ("a: *b", "undefined alias"),
    "no date": ("a: 2024-13-45", "not readable as YAML"),
    "tag": ("a: !!python/object/apply:os.system ['id']", "not readable as YAML"),
    "bytes": ("a: \x00", "not readable as YAML"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    text, message = REFUSED[name]
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_read_is_what_pyyaml_reads() -> None:
    text = "a: &x {b: 1, c: [2, 3]}\nd: {<<: *x, c: 4}\ne: [*x, *x]\n'1': null\n? [k]\n: v\n"
    check_yaml(text)
    for path in sorted(Path(__file__).parents[1].glob("configs/*/*.yaml")):
        assert load_yaml(path) == yaml.safe_load(path.read_text())


def test_missing_files_and_other_encodings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml cannot be read: No such file"):
        load_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("ä: 1".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml is not readable as YAML"):
        load_yaml(tmp_path / "latin.yaml")


@pytest.mark.parametrize("name", ["twice", "bomb"])
def test_protocols_and_configurations_are_read_by_it(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = REFUSED[name]
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_protocol(path)
    assert main(["fit", f"--config={path}"]) == 2
    assert "x.yaml is not readable as YAML" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["model", "data", "trainer"])
def test_files_that_options_name_are_read_by_it(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """jsonargparse reads those by itself."""
    path = tmp_path / "x.yaml"
    path.write_text("class_path: a\nclass_path: b\n")
    assert main(["fit", "--config=settings/sprites", f"--{option}={path}"]) == 2
    assert "arvid: error: " in capsys.readouterr().err
