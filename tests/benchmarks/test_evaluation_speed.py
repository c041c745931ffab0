"""The speed benchmark of evaluation: its page holds every program, installed or not; its clocks and scales work."""

from __future__ import annotations

import json
import mmap
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from arvid.evaluation.scores import distances

SCRIPT = "speed/evaluation"


@pytest.fixture(autouse=True)
def in_this_process(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The script's cases run in this process."""
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(script, "in_process", lambda job: {**job, **script.run_job(job)})
    monkeypatch.setattr(distances.Fvd, "build", distances.Fvd.build)  # put back what a case sets
    distances._shared.cache_clear()


def test_the_page(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cdfvd", None)  # as if it were not installed
    given = ["--num-clips=2", "--num-frames=9", "--size=16", "--bootstrap", "20x4"]
    monkeypatch.setattr(sys, "argv", ["evaluation", *given, f"--out={tmp_path}"])
    try:
        script.main()
    finally:
        distances._shared.cache_clear()
    text = (tmp_path / "table.md").read_text()
    assert "GFLOP/s in bfloat16" in text
    assert "weights of the I3D: random, so the distances are no FVD" in text
    for program in ("cd-fvd", "common_metrics"):
        assert f"| {program} | 2 | not installed |" in text
    first, following, *others = json.loads((tmp_path / "results.json").read_text())["programs"]
    assert first["values"] == following["values"]
    assert first["cpu_seconds"] > following["cpu_seconds"]  # whose real clips are known
    assert all(case["peak_mb"] > 50 for case in (first, following))
    assert ["missing" in case for case in others] == [True, True]


def test_the_bootstrap_is_compared_with_single_distances(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert script.bootstrap_case(20, 30)["relative_difference"] < 1e-9
    usual = script.bootstrap_distances
    monkeypatch.setattr(
        script, "bootstrap_distances", lambda *a, **k: usual(*a, **k) * torch.tensor(1.01)
    )
    assert script.bootstrap_case(20, 30)["relative_difference"] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_counts_workers(script: ModuleType) -> None:
    before = script.tree_memory(os.getpid())
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with mmap.mmap(-1, 64 << 20) as block:
            block.write(bytes(64 << 20))
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    grown = script.tree_memory(os.getpid()) - before
    os.write(done[1], b"x")
    os.waitpid(child, 0)
    assert grown > 60
    assert script.tree_memory(child) == 0
