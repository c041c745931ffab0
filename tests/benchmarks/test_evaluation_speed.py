"""The speed benchmark of evaluation: its page holds every program, installed or not; its clocks and scales work."""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from arvid.evaluation.scores import distances

SCRIPT = Path(__file__).parents[2] / "benchmarks/speed/evaluation.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script as a module, which runs its cases in this process."""
    spec = importlib.util.spec_from_file_location("evaluation_speed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "in_process", lambda job: {**job, **module.run_job(job)})
    monkeypatch.setattr(distances.Fvd, "build", distances.Fvd.build)  # put back what a case sets
    distances._shared.cache_clear()
    return module


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
