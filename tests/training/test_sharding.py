"""Sharded training: two processes compute what one does, and its checkpoints are read by any number of processes."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import pytest

FIT = [
    "fit",
    "--config=settings/sprites",
    "--config=sizes/debug",
    "--data.train.init_args.num_clips=32",
    "--data.val.init_args.num_clips=4",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
    "--trainer.val_check_interval=2",
    "--trainer.max_steps=4",
    "--trainer.gradient_clip_val=0.1",
    "--data.clips_per_step=8",
    "--data.batch_size=4",
]
SHARDED = "--trainer.strategy=sharded"


def logged(run: Path, name: str) -> dict[int, float]:
    """Values of a name by step over all logs of a run."""
    found: dict[int, float] = {}
    for log in sorted(run.glob("logs/version_*/metrics.csv")):
        with open(log, newline="") as file:
            for row in csv.DictReader(file):
                if row.get(name):
                    found[int(row["step"])] = float(row[name])
    return found


def test_two_processes_compute_the_losses_of_one(tmp_path: Path, together: Any) -> None:
    options = [*FIT, "--config=paradigms/nova"]
    codes, outputs = together.run([*options, "--run=one"], 1, tmp_path)
    assert codes == [0], outputs
    codes, outputs = together.run([*options, SHARDED, "--run=two"], 2, tmp_path)
    assert codes == [0, 0], outputs
    for name in ("train_loss", "val_loss"):
        expected = logged(tmp_path / "one", name)
        assert expected
        print(expected, logged(tmp_path / "two", name))
        assert logged(tmp_path / "two", name) == pytest.approx(expected, rel=1e-6)
