"""Ending on a signal: SIGTERM, SIGUSR1 (SLURM sends it before the time limit) and Ctrl-C save a training and end it.

The exit code is 128 + the signal's number, as in shells: 130 after Ctrl-C, 138 after SIGUSR1 and 143 after SIGTERM on
Linux. The same command resumes with the next step. After SIGUSR1 a SLURM job is put back into the queue
(`scontrol requeue`).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from lightning import Callback, LightningModule, Trainer

from arvid.training.saving import SaveLast, wait_for_checkpoint

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextmanager
def leave_at_once() -> Iterator[None]:
    """Inside the block a signal ends the process with its exit code and a message.

    No file is left incomplete: each is written under a temporary name and then moved.
    """
    process = os.getpid()

    def leave(number: int, _frame: object) -> None:
        if os.getpid() == process:  # not in a forked data worker
            _leave(number)

    former = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class LeaveOnSignal(Callback):
    """After a signal to any process, saves the state at the end of the step and ends all processes.

    A second signal ends at once. A validation that is due after the step still runs, because a resumed run would not
    repeat it.

    Args:
        saver: writes the checkpoint.
    """

    def __init__(self, saver: SaveLast) -> None:
        self.saver = saver
        self._process = os.getpid()
        self._received = 0
        self._leaving = 0
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's signal handlers, which save nothing. Lightning restores the original ones at the end."""
        self._received = self._leaving = 0
        self._step = trainer.global_step
        for number in SIGNALS:
            signal.signal(number, self._note)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if trainer.global_step == self._step:  # gradients are being accumulated
            return
        self._step = trainer.global_step
        self._leaving = _of_any_process(trainer, self._received)
        if self._leaving:
            self.saver.save(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End here, one batch later: Lightning logs a step's losses only after `on_train_batch_end`."""
        if not self._leaving:
            return
        wait_for_checkpoint(trainer)
        for log in trainer.loggers:
            log.save()
        if _is_lightnings_child(trainer):
            raise SystemExit(0)  # for another code Lightning kills the parent process
        _leave(self._leaving)

    def _note(self, number: int, _frame: object) -> None:
        if os.getpid() != self._process:
            return
        if self._received:
            _leave(number)
        self._received = number
        _say(f"{signal.Signals(number).name}: saving after this step; a second ends at once.")


def _of_any_process(trainer: Trainer, number: int) -> int:
    """The largest signal number that a process received; 0 if none did."""
    if trainer.world_size == 1:
        return number
    own = torch.tensor(number, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(own, reduce_op="max"))


def _is_lightnings_child(trainer: Trainer) -> bool:
    if trainer.local_rank == 0:
        return False
    environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
    return not environment.creates_processes_externally


def _leave(number: int) -> NoReturn:
    if number == signal.SIGUSR1 and os.environ.get("SLURM_PROCID", "0") == "0":
        _requeue()
    _say(f"ended by {signal.Signals(number).name}; the same command resumes.")
    raise SystemExit(128 + number)


def _say(text: str) -> None:
    os.write(2, f"\narvid: {text}\n".encode())  # not `print`: the signal may have interrupted one


def _requeue() -> None:
    """If this is a SLURM job, put it back into the queue."""
    variables = os.environ
    if "SLURM_JOB_ID" not in variables:
        return
    job = variables["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in variables:
        job = f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        _say(f"the job {job} was not put back into the queue: {error}")
