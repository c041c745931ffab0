"""The doctor: passes here, and names what is wrong where something is."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from arvid.commands import doctor
from arvid.commands.doctor import Row

OK = Row(name="good", status="ok", detail="fine", needed=True)
FAULT = Row(name="bad", status="broken", detail="dead", advice="Mend it.", needed=True)
ABSENT = Row(name="extra", status="missing", detail="absent", advice="Get it.")


def test_arvid_can_run_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(argparse.Namespace()) == 0
    text = capsys.readouterr().out
    assert text.endswith("arvid can run here.\n")
    for word in ("torch", "H.264", "VP9", "arvid/tokenizers", "i3d_torchscript.pt", "GFLOP/s"):
        assert word in text


def test_advice_stands_below_what_is_not_ok() -> None:
    lines = doctor.render({"Section": [OK, ABSENT]}).splitlines()
    assert lines[0] == "Section"
    assert lines[2].split()[:2] == ["missing", "extra"]
    assert lines[3].strip() == "-> Get it."
    assert lines[-1] == "arvid can run here."


def test_a_needed_fault_is_the_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"Section": (lambda: iter([OK, FAULT, ABSENT]),)})
    assert doctor.run(argparse.Namespace()) == 1
    assert capsys.readouterr().out.rstrip().endswith("arvid cannot run here: bad.")


def test_a_check_whose_package_is_missing_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_video() -> Iterator[Row]:
        raise ModuleNotFoundError("No module named 'av'")

    monkeypatch.setattr(doctor, "CHECKS", {"Section": (check_video,)})
    (row,) = doctor.examine()["Section"]
    assert (row.name, row.status) == ("video", "broken")
    assert "av" in row.detail


def test_versions_below_the_bound_and_other_than_tested() -> None:
    version = metadata.version("packaging")
    assert doctor._package(Requirement("packaging>=9999"), {}).status == "broken"
    assert doctor._package(Requirement("no-such-package"), {}).status == "missing"
    assert doctor._package(Requirement("packaging"), {"packaging": version}).detail == version
    row = doctor._package(Requirement("packaging"), {"packaging": "1.0"})
    assert (row.status, row.detail) == ("ok", f"{version} (tested with 1.0)")


def test_constraints_pin_what_make_installs() -> None:
    tested = doctor._tested_versions(Path(__file__).parents[2] / "constraints.txt")
    for text in metadata.requires("arvid") or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": "dev"}):
            continue
        pinned = tested[doctor._canonical(requirement.name)]
        assert requirement.specifier.contains(pinned), text


def test_unwritable_cache_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "file" / "cache"))
    (row,) = doctor.check_folders()
    assert (row.status, row.needed) == ("broken", True)
    assert "ARVID_CACHE" in row.advice


def test_destroyed_link_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "paradigms").write_text("../paradigms")
    monkeypatch.setattr(doctor, "PACKAGE", tmp_path)
    assert {row.status for row in doctor.check_links()} == {"broken"}
    assert [row.status for row in doctor.check_assets()] == ["missing"]


def test_importing_the_doctor_needs_only_torch() -> None:
    """It must be able to say that another package is missing or broken."""
    packages = ["av", "cv2", "lightning", "packaging", "transformers"]
    code = f"""
import sys
for name in {packages}:
    sys.modules[name] = None  # importing it is an ImportError from here on
import arvid.commands.doctor
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_long_name_does_not_run_into_its_detail() -> None:
    long = doctor.Row(name="n" * 60, status="ok", detail="fine")
    short = doctor.Row(name="torch", status="missing", detail="absent", advice="Install it.")
    lines = doctor.render({"Section": [long, short]}).splitlines()
    assert lines[1:5] == [
        f"  ok       {'n' * 60}",
        " " * (11 + 42) + "fine",
        f"  missing  torch{' ' * 37}absent",
        f"{'':11}-> Install it.",
    ]
