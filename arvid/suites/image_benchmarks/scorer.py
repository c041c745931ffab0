"""Runs a benchmark's own scorer: an external program with its own Python environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from arvid.errors import UserError
from arvid.suites.image_benchmarks.benchmark import ScorerRun
from arvid.suites.manifest import read_manifest


def run_scorer(runs: Sequence[ScorerRun], python: str, repository: str) -> None:
    """Call the scripts one after another. Their output goes to the terminal.

    A run is skipped if its result is complete and newer than all images, so an interrupted scoring can continue.

    Raises UserError if the interpreter, a script or images are missing, or if a script fails or writes nothing.
    """
    found = shutil.which(python)
    if found is None:
        raise UserError(
            f"--scorer-python {python}: there is no such Python. Create the environment as described in {repository}."
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
    """Modification time of the newest image, ns. Raises UserError if the number of images is wrong."""
    times = [path.stat().st_mtime_ns for path in run.images.rglob("*.png")]
    manifest = read_manifest(run.part)
    expected = manifest["num_files"] if manifest else len(times)
    if len(times) != expected or not times:
        raise UserError(
            f"{run.images} holds {len(times)} images instead of {expected or 'some'}: "
            "finish sampling first, and delete other images."
        )
    return max(times)


def _is_done(run: ScorerRun, newest: int) -> bool:
    if not run.result.is_file() or run.result.stat().st_mtime_ns < newest:
        return False
    return run.end_marker in run.result.read_text()


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
        raise UserError(f"The scorer ended without a complete {run.result}: {' '.join(command)}")
