"""A rehearsal on a GPU that does nothing: no tensor on a wrong device, few launches, no wait of the host.

Budgets may only fall: a test also fails if a case needs much less than its budget. Lower the budget then.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
TORCH = "2.13"
"""The PyTorch version of the budgets. Other versions decompose some operations differently."""
SLACK = 0.9
"""Smallest share of its budget that a case may need."""

ONE_CHECK = {"arvid/nn/tokens.py": 1}
"""One wait per clip: it checks the ids of given frames."""

# Clips of next_block and next_token include 6 launches that clear the last clip's cache: on GPUs one kernel.
BUDGETS: dict[str, tuple[int, dict[str, int]]] = {
    "frame_diffusion discrete: step": (1056, {}),
    "frame_diffusion discrete: clip": (521, {}),
    "frame_diffusion continuous: step": (1058, {}),
    "frame_diffusion continuous: clip": (448, {}),
    "masked discrete: step": (441, {}),
    "masked discrete: clip": (360, ONE_CHECK),
    "masked ddpm: step": (674, {}),
    "masked ddpm: clip": (262, {}),
    "masked flow: step": (677, {}),
    "masked flow: clip": (262, {}),
    "masked mar: step": (754, {}),
    "masked mar: clip": (262, {}),
    "next_block discrete: step": (442, {}),
    "next_block discrete: clip": (229, ONE_CHECK),
    "next_block ddpm: step": (680, {}),
    "next_block ddpm: clip": (178, {}),
    "next_block flow: step": (683, {}),
    "next_block flow: clip": (178, {}),
    "next_block mar: step": (760, {}),
    "next_block mar: clip": (178, {}),
    "next_scale discrete: step": (554, {}),
    "next_scale discrete: clip": (402, ONE_CHECK),
    "next_scale ddpm: step": (807, {}),
    "next_scale ddpm: clip": (355, {}),
    "next_scale flow: step": (810, {}),
    "next_scale flow: clip": (355, {}),
    "next_scale mar: step": (887, {}),
    "next_scale mar: clip": (355, {}),
    "next_token discrete: step": (441, {}),
    "next_token discrete: clip": (553, ONE_CHECK),
    "next_token continuous: step": (678, {}),
    "next_token continuous: clip": (358, {}),
    "nova discrete: step": (581, {}),
    "nova discrete: clip": (184, {}),
    "nova ddpm: step": (793, {}),
    "nova ddpm: clip": (132, {}),
    "nova flow: step": (796, {}),
    "nova flow: clip": (132, {}),
    "nova mar: step": (873, {}),
    "nova mar: clip": (132, {}),
    "vae3d: step": (924, {}),
    "vae3d: clip": (342, {}),
    "magvit_fsq: step": (892, {}),
    "magvit_fsq: clip": (378, {}),
    "i3d: features": (286, {}),
    "nova: frame of 64 sets": (635, {}),
    "categorical head: top-k and top-p": (21, {}),
}
"""Launches of each case, and the waits that it may have, by file."""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`device.cpp` as a library. Skips where it cannot be built."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++, to build a CUDA device that does nothing")
    if torch.version.cuda is not None:
        pytest.skip("needs a CPU build of PyTorch: this one has CUDA's own device")
    root, library = Path(torch.__file__).parent, tmp_path_factory.mktemp("device") / "device.so"
    flags = ["-std=c++20", "-O0", "-w", "-fPIC", "-shared", f"-I{root}/include"]
    linked = [f"-L{root}/lib", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root}/lib"]
    command = [compiler, *flags, str(HERE / "device.cpp"), "-o", str(library), *linked]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"device.cpp cannot be built with this PyTorch: {built.stderr[-300:]}")
    return library


@pytest.fixture(scope="session")
def outcomes(library: Path) -> dict[str, Any]:
    """Counts of each case. All cases run in one separate process, which loads the library before PyTorch."""
    done = subprocess.run(
        [sys.executable, HERE / "rehearse.py", library],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_case_has_a_budget(outcomes: dict[str, Any]) -> None:
    assert outcomes.keys() == BUDGETS.keys()


@pytest.mark.parametrize("name", BUDGETS)
def test_nothing_waits_and_launches_are_few(outcomes: dict[str, Any], name: str) -> None:
    found, (launches, waits) = outcomes[name], BUDGETS[name]
    assert "error" not in found, found["error"]
    by_file: dict[str, int] = {}
    for place, count in found["waits"].items():
        file = place.rpartition(" at ")[2].rpartition(":")[0]
        by_file[file] = by_file.get(file, 0) + count
    assert by_file == waits, found["waits"]
    if torch.__version__.startswith(TORCH):
        assert SLACK * launches <= found["launches"] <= launches


def test_a_frame_of_64_sets_needs_few_launches() -> None:
    """The 0.6B model needed 89,000 launches before CUDA graphs."""
    assert BUDGETS["nova: frame of 64 sets"][0] < 2000
