"""The other nine dimensions, computed by the package `vbench` in its own environment.

The package requires numpy below 2, transformers 4.33.2 and, for four dimensions, detectron2. So it cannot share arvid's
environment. It is called as a subprocess through its Python class, one dimension at a time. It runs as a single process
(then spatial_relationship pools frames instead of videos). It downloads its weights into ~/.cache/vbench.
"""

from __future__ import annotations

import dataclasses
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from arvid.contracts import UserError
from arvid.suites.vbench.aggregate import DIMENSIONS
from arvid.suites.vbench.dimensions import BUILDERS
from arvid.suites.vbench.results import (
    DimensionResult,
    finished,
    load,
    result_path,
    save,
    videos_sha256,
)
from arvid.suites.vbench.suite import Take

EXTERNAL = tuple(name for name in DIMENSIONS if name not in BUILDERS)
"""The dimensions that arvid does not compute itself."""
_DRIVER = Path(__file__).with_name("_driver.py")
_TAIL = 1500


def score_external(
    dimension: str,
    takes: Sequence[Take],
    *,
    python: Path,
    suite: Path,
    videos: Path,
    folder: Path,
) -> DimensionResult:
    """Score a dimension with VBench's package and write its result.

    Args:
        dimension: one of `EXTERNAL`.
        takes: the existing videos; see `suite.present`.
        python: interpreter of the environment with the package.
        suite: VBench_full_info.json.
        videos: folder of the videos, with VBench's file names and no other files.
        folder: folder of the results. A result of this interpreter for the same videos is reused.

    Raises UserError if the interpreter does not exist, fails, or writes no valid result.
    """
    made_with = {
        "vbench_python": str(python),
        "videos_sha256": videos_sha256(videos / take.file for take in takes),
    }
    kept = finished(folder, dimension, made_with)
    if kept:
        return kept
    _check_folder(videos)
    if not all(take.has_own_name for take in takes):
        raise UserError(
            f"{suite}: VBench's package finds videos by their prompts, and a prompt here is too long for a file name. "
            f"Shorten it, or leave {dimension} out."
        )
    with tempfile.TemporaryDirectory() as out:
        _run(python, str(suite.resolve()), str(videos.resolve()), out, dimension)
        path = result_path(Path(out), dimension)
        if not path.is_file():
            raise UserError(f"{python}: VBench ended without an error, but wrote no {path.name}.")
        found = load(path)
    if dimension not in found:
        raise UserError(f"{python}: VBench's result has {', '.join(found)} and not {dimension}.")
    result = dataclasses.replace(found[dimension], made_with=made_with)
    save(result, folder)
    return result


def _run(python: Path, *arguments: str) -> None:
    # passed as a string: run by path, this folder would come first in sys.path and its modules could shadow packages
    command = [str(python), "-c", _DRIVER.read_text(encoding="utf-8"), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise UserError(
            f"{python}: cannot be run as a Python interpreter ({error.strerror or error}). Make an "
            "environment of Python 3.10 with `pip install vbench` and name its python."
        ) from error
    if done.returncode:
        output = (done.stderr or done.stdout).strip()[-_TAIL:]
        raise UserError(
            f"VBench's {arguments[-1]} failed in {python} (exit code {done.returncode}). The end of its "
            f"output:\n{output}"
        )


def _check_folder(videos: Path) -> None:
    """Raise UserError for files other than .mp4: VBench assumes that all files have the suffix of the first."""
    others = sorted(path.name for path in videos.iterdir() if path.suffix != ".mp4")
    if others:
        raise UserError(
            f"{videos} holds {others[0]!r}: VBench needs a folder with only .mp4 files."
        )
