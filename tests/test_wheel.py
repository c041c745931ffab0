"""A wheel does what a checkout does. It is built and installed without the network, and used from an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the installed wheel; its dependencies are those of the tests."""
    pytest.importorskip("hatchling", reason="needs the dev extra")
    pytest.importorskip("pip", reason="installs the wheel with pip")
    folder = tmp_path_factory.mktemp("wheel")
    build = ["hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run([sys.executable, "-m", *build], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--target", folder / "site"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wheel], check=True)
    return folder / "site"


def run(site: Path, folder: Path, *arguments: str) -> str:
    """Output of `python -m ARGUMENTS` in a folder, with the installed wheel."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(folder)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_commands_and_benchmarks_are_listed(site: Path, tmp_path: Path) -> None:
    assert "demo " in run(site, tmp_path, "arvid", "--help")
    listed = run(site, tmp_path, "arvid", "bench", "--help")
    assert re.search(r"nova/text_to_video +NOVA's text-to-video table", listed)
    assert "usage: arvid demo" in run(site, tmp_path, "arvid", "demo", "--help")


def test_published_numbers_are_installed(site: Path) -> None:
    numbers = sorted(path.name for path in (ROOT / "benchmarks").rglob("*.csv"))
    assert numbers
    assert sorted(path.name for path in (site / "arvid/benchmarks").rglob("*.csv")) == numbers


def test_contracts_of_a_plug_in(site: Path, tmp_path: Path) -> None:
    """The paradigm of docs/extending.md, announced as pip does."""
    page = (ROOT / "docs/extending.md").read_text()
    (code,) = re.findall(r"^```python\n(# frame_wise.py\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "frame_wise.py").write_text(code)
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[arvid.paradigms]\nframe_wise = frame_wise:FrameWise\n")
    (command,) = re.findall(r"^python -m (pytest --pyargs .*)$", page, re.MULTILINE)
    words = command.replace('"', "").split(" -k ")[0].split()
    told = run(site, tmp_path, *words, "-k", "frame_wise", "-q", "-p", "no:cacheprovider")
    passed = re.search(r"(\d+) passed", told)
    assert passed is not None
    assert int(passed[1]) >= 10


@pytest.mark.slow
def test_the_demo_from_an_empty_folder(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    table = run(site, folder, "arvid", "demo", "--scale", "smoke")
    for row in ("real", "nova-continuous", "next_block-discrete"):
        assert row in table
    assert (folder / "runs/demo/index.html").stat().st_size > 100_000
