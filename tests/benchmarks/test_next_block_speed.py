"""The speed benchmark of next-block prediction: every case has a row, and the checks can fail."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from arvid.contracts import UserError
from arvid.nn.heads import categorical

SCRIPT = Path(__file__).parents[2] / "benchmarks/speed/next_block.py"


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *given: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["next_block", *given, f"--out={out}"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return json.loads((out / "results.json").read_text())


def test_every_block_and_batch_has_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usual = categorical.draw
    report = run(monkeypatch, tmp_path, "--scale=tiny", "--batch=1", "--batch=3")
    assert categorical.draw is usual
    rows = report["rows"]
    assert [(r["block"], r["batch"], r["steps"]) for r in rows] == [
        (block, batch, 32 // block) for block in (1, 4, 16) for batch in (1, 3)
    ]
    for row in rows:
        assert 0 < row["sampler_share"] < 1
        assert row["forward_share"] + row["sampler_share"] == pytest.approx(1)
        ratio = row["bound_tokens_per_second"] / row["tokens_per_second"]
        assert row["times_bound"] == pytest.approx(ratio)
    beside = report["transformers"]
    assert [r["cache"] for r in beside] == ["static"] * 2
    assert [r["sampling"] for r in beside] == ["greedy", "top-k 25, top-p 0.9"]
    assert [c["value"] for c in report["checks"]] == [r["ratio"] for r in beside]
    page = (tmp_path / "table.md").read_text()
    assert "| 16 | 3 | 2 |" in page
    assert "| greedy; its cache is static |" in page
    (cpu,) = report["notes"]
    assert cpu.startswith("CPU instructions: ")
    assert page.index(cpu) < page.index("| block |")
    rates = re.findall(r"([0-9.]+) GFLOP/s in (float32|bfloat16)", cpu)
    assert {dtype for _, dtype in rates} == {"float32", "bfloat16"}
    assert all(float(rate) > 0 for rate, _ in rates)


def test_the_bound_counts_weights_and_cache() -> None:
    script = runpy.run_path(str(SCRIPT))
    scale = script["SCALES"]["tiny"]
    model = script["build"](scale, (1, 4, 4))
    weights = 12 * 16**2 + 13 * 16 + 2 * 16 + 100 * 16  # a layer, the last norm, logits
    cache = 2 * 1 * 16 * 3 * (32 + 48) / 2  # keys and values of 3 clips
    assert script["bytes_per_step"](model, scale, 3) == 4 * (weights + cache)


def test_checks_can_fail() -> None:
    check = runpy.run_path(str(SCRIPT))["checks"]
    rows = [
        {"block": 1, "batch": 1, "tokens_per_second": 100.0, "times_bound": 1.6},
        {"block": 1, "batch": 4, "tokens_per_second": 999.0, "times_bound": 1.0},
        {"block": 16, "batch": 1, "tokens_per_second": 1200.0, "times_bound": 2.0},
    ]
    found = check("paper", rows, [{"sampling": "greedy", "ratio": 0.9}])
    assert [c["holds"] for c in found] == [False, True, False]
    assert [c["value"] for c in found] == [0.9, 12.0, 1.6]


def test_the_papers_scale_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="needs a GPU"):
        run(monkeypatch, tmp_path, "--scale=paper")
