"""The other nine dimensions, by the package `vbench` in an environment of its own.

The package asks for numpy below 2, transformers 4.33.2 and, for four dimensions, detectron2, so it cannot share
arvid's environment: it is called as a subprocess, one dimension at a time, by its Python class. It runs as a single
process (spatial_relationship pools frames then, and not videos), and fetches its own weights into ~/.cache/vbench.
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
"""The dimensions that are not measured in this process."""
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
    """Score a dimension by VBench's package and write its result.

    Args:
        dimension: one of `EXTERNAL`.
        takes: the videos that are there; see `suite.present`.
        python: interpreter of the environment that has the package.
        suite: VBench_full_info.json.
        videos: folder of the videos, named as VBench wants them, and of nothing else.
        folder: of the results. One that this interpreter made of the same videos is kept.

    Raises UserError where there is no such interpreter, it fails, or what it writes is not a result.
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
            f"{suite}: VBench's package looks for videos by their prompts, and a prompt here is too long for the name "
            f"of a file. Shorten it, or leave {dimension} out."
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
    # as a string: run by its path, the folder of this file would come first among those that are imported from
    command = [str(python), "-c", _DRIVER.read_text(encoding="utf-8"), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise UserError(
            f"{python}: cannot be run as a Python interpreter ({error.strerror or error}). Make an "
            "environment of Python 3.10 with `pip install vbench` and name its python."
        ) from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-_TAIL:]
        raise UserError(
            f"VBench's {arguments[-1]} failed in {python} (exit code {done.returncode}). Its last "
            f"words:\n{said}"
        )


def _check_folder(videos: Path) -> None:
    """VBench takes the first entry's ending for that of all."""
    others = sorted(path.name for path in videos.iterdir() if path.suffix != ".mp4")
    if others:
        raise UserError(
            f"{videos} holds {others[0]!r}: VBench needs a folder of .mp4 files and nothing else."
        )
