"""Runs a benchmark's own scorer, a program with an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from arvid.errors import UserError
from arvid.suites.image_benchmarks.benchmark import ScorerRun
from arvid.suites.manifest import read_manifest


def run_scorer(runs: Sequence[ScorerRun], python: str, repository: str) -> None:
    """Call the scripts one after another; what they print goes to the terminal.

    A run is left out if its result is whole and newer than all images, so a scoring that was interrupted goes on.

    Raises UserError where the interpreter, a script or the images are missing, and for a script that fails or
    writes nothing.
    """
    found = shutil.which(python)
    if found is None:
        raise UserError(
            f"--scorer-python {python}: there is no such Python. Make an environment as {repository} says."
        )
    for run in runs:
        if not run.script.is_file():
            raise UserError(f"{run.script} is missing: --scorer names a checkout of {repository}.")
        newest = _newest_image(run)
        if _is_done(run, newest):
            print(f"{run.result} is newer than the images: not scored again.")
        else:
            _call(run, os.path.abspath(found), newest)


def _newest_image(run: ScorerRun) -> int:
    """Time of the newest image. Raises UserError unless the images are as many as were to be sampled."""
    times = [path.stat().st_mtime_ns for path in run.images.rglob("*.png")]
    manifest = read_manifest(run.part)
    expected = manifest["num_files"] if manifest else len(times)
    if len(times) != expected or not times:
        raise UserError(
            f"{run.images} holds {len(times)} images in the place of {expected or 'some'}: "
            "finish sampling first, and delete what is not of it."
        )
    return max(times)


def _is_done(run: ScorerRun, newest: int) -> bool:
    if not run.result.is_file() or run.result.stat().st_mtime_ns < newest:
        return False
    return run.last_words in run.result.read_text()


def _call(run: ScorerRun, python: str, newest: int) -> None:
    command = [python, str(run.script), *run.arguments]
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(command, cwd=run.script.parent, env=clean, check=False)
    except OSError as error:
        raise UserError(f"{python}: cannot be run ({error.strerror or error}).") from error
    if done.returncode:
        raise UserError(f"The scorer failed (exit code {done.returncode}): {' '.join(command)}")
    if not _is_done(run, newest):
        raise UserError(f"The scorer ended without a whole {run.result}: {' '.join(command)}")
