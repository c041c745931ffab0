"""What happens to one of two processes happens to both: a step is skipped, and a signal ends the training."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

Arguments = Callable[..., list[str]]
Losses = Callable[..., dict[int, float]]
RunTwo = Callable[..., subprocess.CompletedProcess[str]]

PROGRAM = """
import os, signal
import torch
from arvid.cli import main
from arvid.paradigms.nova import NOVA

loss = NOVA.loss
steps = iter(range(1000))

def disturbed(self, tokens, condition):
    losses = loss(self, tokens, condition)
    step = next(steps)
    if torch.distributed.get_rank() == 1 and step == 1:
        losses["loss"] = losses["loss"] * float("nan")
    if torch.distributed.get_rank() == 1 and step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return losses

NOVA.loss = disturbed
try:
    main(arguments)
except SystemExit as left:
    os.write(1, f"left with {left.code}\\n".encode())  # whole, beside the other process's
"""


def test_a_step_and_a_signal_of_one_process_are_all_processes(
    tmp_path: Path, small_fit: Arguments, losses_of: Losses, run_two: RunTwo
) -> None:
    """Two processes and their start: that takes its time."""
    run = tmp_path / "run"
    given = small_fit(run, "nova", "--trainer.max_steps=50", "--data.clips_per_step=2")
    done = run_two(PROGRAM, [*given, "--trainer.limit_val_batches=0"])
    assert done.stdout.count("left with 143") == 2, done.stderr
    assert losses_of(run, "skipped_steps") == {0: 0, 1: 1, 2: 1, 3: 1}
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 4
    adamw = state["optimizer_states"][0]["parts"][1]["state"]
    assert {int(of_one["step"]) for of_one in adamw.values()} == {3}
