"""Dimensions that VBench's own code computes, in its own environment.

The package `vbench` computes nine of VBench's dimensions. A copy of the repository computes all dimensions of its
relatives (`arvid.suites.vbench.relatives`). This code requires numpy below 2, an old version of transformers and, for
some dimensions, detectron2 or mmcv. So it cannot share arvid's environment. It is called as a subprocess through its
Python class, one dimension at a time, in a single process (VBench's spatial_relationship then pools frames instead of
videos). It downloads its weights into ~/.cache/vbench or ~/.cache/vbench2.
"""

from __future__ import annotations

import dataclasses
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from arvid.contracts import UserError
from arvid.suites.vbench.aggregate import DIMENSIONS, VBENCH, Rules
from arvid.suites.vbench.dimensions import BUILDERS
from arvid.suites.vbench.results import (
    DimensionResult,
    finished,
    load,
    result_path,
    save,
    videos_sha256,
)

EXTERNAL = tuple(name for name in DIMENSIONS if name not in BUILDERS)
"""VBench's dimensions that arvid does not compute itself."""
_TAIL = 1500


class NamedVideo(Protocol):
    """A video of a prompt."""

    @property
    def file(self) -> str:
        """File name, below the folder of the videos."""

    @property
    def has_own_name(self) -> bool:
        """Whether VBench itself uses this file name."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A program that scores a dimension with VBench's code. It does not import arvid."""

    python: Path
    """Interpreter of the environment."""
    driver: str = "_driver.py"
    """Source file of the program, in this folder."""
    arguments: tuple[str, ...] = ()
    """The first arguments of the program. The list of prompts, folders of videos and results, and dimension follow."""
    rules: Rules = VBENCH
    made_with: Mapping[str, str] = field(default_factory=dict)
    """What a score depends on, besides the interpreter and the videos."""
    makes_folders: bool = False
    """Whether the program may write folders beside the videos."""

    @property
    def source(self) -> str:
        """Text of the program."""
        return Path(__file__).with_name(self.driver).read_text(encoding="utf-8")


def score_external(
    dimension: str,
    takes: Sequence[NamedVideo],
    scorer: Scorer,
    *,
    suite: Path,
    videos: Path,
    folder: Path,
) -> DimensionResult:
    """Score a dimension with VBench's code and write its result.

    Args:
        dimension: a dimension that the program can score.
        takes: the existing videos; see `suite.present`.
        scorer: the program.
        suite: list of prompts, such as VBench_full_info.json.
        videos: folder of the videos, with VBench's file names and no other files.
        folder: folder of the results. A result of this interpreter for the same videos is reused.

    Raises UserError if the interpreter does not exist, fails, or writes no valid result.
    """
    made_with = {
        **scorer.made_with,
        "vbench_python": str(scorer.python),
        "videos_sha256": videos_sha256(videos / take.file for take in takes),
    }
    kept = finished(folder, dimension, made_with, scorer.rules)
    if kept:
        return kept
    _check_folder((videos / takes[0].file).parent, scorer)
    if not all(take.has_own_name for take in takes):
        raise UserError(
            f"{suite}: VBench's package finds videos by their prompts, and a prompt here is too long for a file name. "
            f"Shorten it, or leave {dimension} out."
        )
    with tempfile.TemporaryDirectory() as out:
        _run(scorer, str(suite.resolve()), str(videos.resolve()), out, dimension)
        path = result_path(Path(out), dimension)
        if not path.is_file():
            raise UserError(
                f"{scorer.python}: VBench ended without an error, but wrote no {path.name}."
            )
        found = load(path, scorer.rules)
    if dimension not in found:
        raise UserError(
            f"{scorer.python}: VBench's result has {', '.join(found)} and not {dimension}."
        )
    result = dataclasses.replace(found[dimension], made_with=made_with)
    save(result, folder)
    return result


def _run(scorer: Scorer, *arguments: str) -> None:
    # passed as a string: run by path, this folder would come first in sys.path and its modules could shadow packages
    command = [str(scorer.python), "-c", scorer.source, *scorer.arguments, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise UserError(
            f"{scorer.python}: cannot be run as a Python interpreter ({error.strerror or error}). Make an "
            "environment of Python 3.10 with `pip install vbench` and name its python (docs/vbench.md)."
        ) from error
    if done.returncode:
        output = (done.stderr or done.stdout).strip()[-_TAIL:]
        raise UserError(
            f"{scorer.rules.title}'s {arguments[-1]} failed in {scorer.python} (exit code {done.returncode}). The end "
            f"of its output:\n{output}"
        )


def _check_folder(videos: Path, scorer: Scorer) -> None:
    """Raise UserError for files other than .mp4: VBench assumes that all files have the suffix of the first."""
    others = sorted(
        path.name
        for path in videos.iterdir()
        if path.suffix != ".mp4" and not (scorer.makes_folders and path.is_dir())
    )
    if others:
        raise UserError(
            f"{videos} holds {others[0]!r}: VBench needs a folder with only .mp4 files."
        )
