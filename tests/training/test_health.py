"""What every run logs about itself, and the FLOPs behind the utilisation."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from arvid.cli import main
from arvid.flops import flop_counter
from arvid.training import health
from arvid.training.generator_module import load_generator
from arvid.training.health import flops_of_batch, seconds_at_peak

Arguments = Callable[..., list[str]]


def test_a_run_logs_its_health(tmp_path: Path, small_fit: Arguments) -> None:
    more = [
        "--trainer.max_steps=4",
        "--trainer.log_every_n_steps=2",
        "--trainer.val_check_interval=4",
    ]
    assert main(small_fit(tmp_path, "next_block", *more)) == 0
    with open(tmp_path / "logs/version_0/metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train_loss"]]
    assert [int(row["step"]) for row in rows] == [1, 3]
    for row in rows:
        assert float(row["learning_rate"]) > 0
        assert float(row["gradient_norm"]) > 0
        assert 0 <= float(row["data_seconds"]) < float(row["seconds"])
        assert float(row["peak_memory_gib"]) > 0.05
        assert float(row["tokens_per_second"]) > 0
        assert float(row["skipped_steps"]) == 0


def test_flops_of_a_batch_are_those_of_its_step(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_generator(trained_run)
    module.paradigm.requires_grad_(True)
    grid = module.paradigm.grid
    tokens = torch.zeros(3, grid.t, grid.h, grid.w, dtype=torch.long)
    values = {name: torch.zeros(3, dtype=torch.long) for name in module.conditioner.sizes}
    batch = {"tokens": tokens, "caption": ["a square"] * 3, **values}
    state = torch.get_rng_state()
    counted = flops_of_batch(module, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert next(module.paradigm.parameters()).grad is None
    with torch.no_grad():
        condition = module.conditioner.from_batch(batch)
    with flop_counter() as flops:
        module.paradigm.loss(tokens, condition)["loss"].backward()
    assert counted == flops.get_total_flops()
    assert seconds_at_peak(module, batch) == 0  # a CPU's peak rate is not known
    monkeypatch.setattr(health, "get_available_flops", lambda *_: 10 * counted)
    monkeypatch.setattr(health, "flops_of_batch", lambda *_: counted)
    module._device = torch.device("cuda", 0)
    module._trainer = SimpleNamespace(precision="bf16-mixed")  # type: ignore[assignment]
    assert seconds_at_peak(module, batch) == pytest.approx(0.1 / 3)
