"""Small trainings by the command line, and real LPIPS weights, where they are."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = (
    "--data.train.init_args.num_clips=16",
    "--data.val.init_args.num_clips=8",
    "--data.clips_per_step=4",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
    "--trainer.val_check_interval=2",
)
Arguments = Callable[..., list[str]]
Losses = Callable[..., dict[int, float]]


@pytest.fixture(scope="session")
def small_fit() -> Arguments:
    """`small_fit(run, paradigm, *more)`: arguments of `arvid` that train a generator on few sprites, on the CPU."""

    def arguments(run: Path, paradigm: str, *more: str) -> list[str]:
        configs = ["settings/sprites", f"paradigms/{paradigm}", "sizes/debug"]
        return ["fit", *(f"--config={name}" for name in configs), *SMALL, f"--run={run}", *more]

    return arguments


@pytest.fixture(scope="session")
def small_tokenizer_fit() -> Arguments:
    """`small_tokenizer_fit(run, tokenizer, *more)`: the same of a tokenizer."""

    def arguments(run: Path, tokenizer: str, *more: str) -> list[str]:
        configs = [f"tokenizers/sprites-{tokenizer}", "settings/sprites-tokenizers"]
        return ["fit", *(f"--config={name}" for name in configs), *SMALL, f"--run={run}", *more]

    return arguments


@pytest.fixture
def run_two(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_two(program, arguments)`: run a program that ends in `main(arguments)` in two processes, by torchrun."""

    def run(program: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "two.py"
        options = ["--trainer.devices=2", "--trainer.strategy=ddp"]
        script.write_text(f"arguments = {[*arguments, *options]!r}\n{program}")
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
        return subprocess.run(
            [sys.executable, "-m", *launcher],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture(scope="session")
def losses_of() -> Losses:
    """`losses_of(run, column="train_loss")`: the values of a column by step, over all logs of a run."""

    def losses(run: Path, column: str = "train_loss") -> dict[int, float]:
        found: dict[int, float] = {}
        logs = run.glob("logs/version_*/metrics.csv")
        for log in sorted(logs, key=lambda path: int(path.parent.name.rpartition("_")[2])):
            with open(log, newline="") as file:
                for row in csv.DictReader(file):
                    if row.get(column):
                        found[int(row["step"])] = float(row[column])
        return found

    return losses


@pytest.fixture(scope="session")
def squeeze(shared: Path) -> str:
    """File with the SqueezeNet weights of LPIPS."""
    path = shared / "weights/lpips_squeeze/squeezenet1_1_features.safetensors"
    if not path.is_file():
        pytest.skip(f"needs the weights {path.name}, which are not here")
    return str(path)
