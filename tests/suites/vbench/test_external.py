"""Dimensions by the package, with programs in the place of its interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arvid.contracts import UserError
from arvid.suites.vbench.external import Scorer, score_external
from arvid.suites.vbench.results import DimensionResult, load_all
from arvid.suites.vbench.suite import Take

MakeVideos = Callable[..., list[Take]]

# What arvid's driver imports: a package `vbench` beside a `torch`.
PACKAGE = """
import json, os
class VBench:
    def __init__(self, device, suite, out):
        self.device, self.suite, self.out = device, suite, out
    def evaluate(self, videos_path, name, dimension_list, mode):
        assert mode == "vbench_standard" and self.device == "device:cpu"
        assert "prompt_en" in open(self.suite).read()
        rows = [{"video_path": os.path.join(videos_path, f), "video_results": 0.5}
                for f in sorted(os.listdir(videos_path))]
        with open(os.path.join(self.out, name + "_eval_results.json"), "w") as file:
            json.dump({dimension_list[0]: [0.25, rows]}, file)
"""
TORCH = """
device = lambda name: "device:" + name
class cuda:
    is_available = staticmethod(lambda: False)
"""


def python(tmp_path: Path, body: str) -> Path:
    """A program that is called in the place of Python."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    return path


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An interpreter that finds the made-up packages."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "vbench.py").write_text(PACKAGE)
    (site / "torch.py").write_text(TORCH)
    return python(
        tmp_path,
        "import os, sys\n"
        f"os.environ['PYTHONPATH'] = {str(site)!r}\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n",
    )


def score(takes: list[Take], interpreter: Path, tmp_path: Path) -> DimensionResult:
    return score_external(
        "scene",
        takes,
        Scorer(python=interpreter),
        suite=tmp_path / "VBench_full_info.json",
        videos=tmp_path / "videos",
        folder=tmp_path / "scores",
    )


def test_the_package_is_asked_and_its_result_kept(
    make_videos: MakeVideos, environment: Path, tmp_path: Path
) -> None:
    takes = make_videos("scene")
    found = score(takes, environment, tmp_path)
    assert found.score == 0.25
    assert [Path(video["video_path"]).name for video in found.videos] == [
        take.file for take in takes
    ]
    assert load_all(tmp_path / "scores") == {"scene": found}
    environment.write_text(f"#!{sys.executable}\nraise SystemExit('asked again')\n")
    assert score(takes, environment, tmp_path) == found
    os.utime(tmp_path / "videos" / takes[0].file, (1, 1))
    with pytest.raises(UserError, match="asked again"):
        score(takes, environment, tmp_path)


WRITE = "import sys; open(sys.argv[5] + '/scene_eval_results.json', 'w').write({!r})"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ImportError('No module named vbench')", r"exit code 1[^Z]*No module named vbench"),
        ("", "wrote no scene_eval_results.json"),
        (WRITE.format("<html>"), "not a result of VBench"),
        (WRITE.format('{"scene": [NaN, []]}'), "not a finite number"),
        (WRITE.format('{"color": [0.5, []]}'), "has color and not scene"),
    ],
)
def test_failures_are_told(
    make_videos: MakeVideos, tmp_path: Path, body: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        score(make_videos("scene"), python(tmp_path, body), tmp_path)
    assert not (tmp_path / "scores").exists()


def test_no_interpreter_and_other_files_are_told(make_videos: MakeVideos, tmp_path: Path) -> None:
    takes = make_videos("scene")
    with pytest.raises(UserError, match="cannot be run as a Python interpreter"):
        score(takes, tmp_path / "none", tmp_path)
    (tmp_path / "videos" / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"holds 'notes.txt'"):
        score(takes, tmp_path / "none", tmp_path)


def test_the_driver_needs_nothing_of_arvid() -> None:
    for driver, count in (("_driver.py", 4), ("_relatives_driver.py", 7)):
        source = Scorer(python=Path(sys.executable), driver=driver).source
        assert "import arvid" not in source
        assert "from arvid" not in source
        done = subprocess.run(
            [sys.executable, "-S", "-c", source], capture_output=True, text=True, check=False
        )
        assert f"missing {count} required positional arguments" in done.stderr
