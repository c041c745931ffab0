"""`arvid fit` killed at seeded moments, and the same command again until it is done: an unbroken run's numbers."""

from __future__ import annotations

import csv
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arvid.cli import main

Arguments = Callable[..., list[str]]
Losses = Callable[..., dict[int, float]]
Kill = Callable[..., int]
KILL, TERM, INT, USR1 = signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
CODES = {KILL: -9, TERM: 143, INT: 130, USR1: 138}
SAVE_EVERY = 7
STEPS = 60
OPTIONS = (f"--trainer.max_steps={STEPS}", f"--save_every_n_steps={SAVE_EVERY}")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, small_fit: Arguments) -> Path:
    torch.set_num_threads(1)  # as in the killed ones, for the same sums
    run = tmp_path_factory.mktemp("unbroken")
    assert main(small_fit(run, "nova", *OPTIONS)) == 0
    return run


def steps_of(log: Path) -> list[int]:
    with open(log, newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get("train_loss")]


def last_checkpoint(run: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint


SLOW = pytest.mark.slow
SEQUENCES = [
    (0, (KILL, USR1)),
    pytest.param(1, (INT, TERM, KILL, USR1, KILL), marks=SLOW),
    pytest.param(2, (KILL, KILL, TERM, USR1, INT), marks=SLOW),
]


@pytest.mark.parametrize(("seed", "numbers"), SEQUENCES)
def test_a_run_that_is_killed_again_and_again_is_the_unbroken_one(
    tmp_path: Path,
    small_fit: Arguments,
    losses_of: Losses,
    kill: Kill,
    unbroken: Path,
    seed: int,
    numbers: tuple[signal.Signals, ...],
) -> None:
    """Each kill is the start of a process."""
    draw = random.Random(seed)
    given = small_fit(tmp_path, "nova", *OPTIONS)
    before: list[int] = []
    for i, number in enumerate((*numbers, None)):
        log = tmp_path / f"logs/version_{i}/metrics.csv"
        if number is None:
            torch.set_num_threads(1)
            assert main(given) == 0
        else:
            code = kill(given, number, after=draw.uniform(0, 1), ready=log.is_file)
            assert code in (CODES[number], -number, 0)
            if code != CODES[number]:  # the signal came after the last step
                assert last_checkpoint(tmp_path)["global_step"] == STEPS
        steps = steps_of(log) if log.is_file() else []
        if before and steps:
            again = before[-1] + 1 - steps[0]
            killed = numbers[i - 1] == KILL
            assert 0 <= again <= SAVE_EVERY if killed else again == 0
        before = steps or before
    found, expected = losses_of(tmp_path), losses_of(unbroken)
    missing = expected.keys() - found.keys()  # killed between a save and its line in the log
    assert len(missing) <= numbers.count(KILL)
    assert found == {step: expected[step] for step in found}
    ours, theirs = (last_checkpoint(run)["current_model_state"] for run in (tmp_path, unbroken))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
