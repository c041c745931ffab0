"""Several `arvid` commands side by side: jobs that share nothing, each in processes and with cores of its own.

On a CPU that is the way to use all cores: a small model trains as fast on one core as on two. On a GPU jobs run one
after another, since one of them fills it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from arvid.contracts import UserError

TAIL_BYTES = 4096
REPORT_SECONDS = {True: 1.0, False: 30.0}
"""Time between two reports of progress, by whether a terminal shows them."""


@dataclass(frozen=True)
class Job:
    """Commands that run one after another.

    Args:
        name: what reports of progress and the log file are called.
        commands: arguments of `arvid` each, such as ["evaluate", "runs/nova"].
    """

    name: str
    commands: Sequence[Sequence[str]]


def run_side_by_side(jobs: Sequence[Job], logs: Path) -> None:
    """Run all jobs, on a CPU all at once; what a job prints goes to NAME.log in the folder `logs`.

    Raises UserError with the end of the log of the first command that fails; the other jobs are stopped.
    """
    cores = torch.get_num_threads()
    num_slots = 1 if torch.cuda.is_available() else len(jobs)
    logs.mkdir(parents=True, exist_ok=True)
    waiting = deque(jobs)
    running: list[_Running] = []
    reporter = _Reporter()
    try:
        while waiting or running:
            while waiting and len(running) < num_slots:
                running.append(_Running(waiting.popleft(), logs, max(cores // num_slots, 1)))
            time.sleep(0.2)
            running = [job for job in running if not job.done()]
            reporter.show(running)
    finally:
        for job in running:
            job.stop()
        reporter.close()


class _Running:
    """A job under way."""

    def __init__(self, job: Job, logs: Path, threads: int) -> None:
        self.name = job.name
        self.log = logs / f"{job.name}.log"
        self.commands = deque(job.commands)
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.log.write_bytes(b"")
        self.process = self._start_next()

    def done(self) -> bool:
        """Whether the last command has ended; starts the next one when one has. Raises UserError on failure."""
        code = self.process.poll()
        if code is None:
            return False
        if code:
            last = "\n".join(self._tail().splitlines()[-20:])
            raise UserError(
                f"{self.name} failed (exit code {code}). The end of {self.log}:\n{last}"
            )
        if not self.commands:
            return True
        self.process = self._start_next()
        return False

    def stop(self) -> None:
        """End the command that runs."""
        self.process.terminate()
        self.process.wait()

    def progress(self) -> str:
        """`name 12/400`: the newest count of its progress bars."""
        counts = re.findall(r"\| (\d+/\d+) \[", self._tail())
        return f"{self.name} {counts[-1] if counts else 'starts'}"

    def _start_next(self) -> subprocess.Popen[bytes]:
        arguments = ["arvid", *self.commands.popleft()]
        with self.log.open("ab") as log:
            log.write(f"$ {shlex.join(arguments)}\n".encode())
            log.flush()
            return subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )

    def _tail(self) -> str:
        with self.log.open("rb") as log:
            log.seek(max(self.log.stat().st_size - TAIL_BYTES, 0))
            return log.read().decode(errors="replace").replace("\r", "\n")


class _Reporter:
    """One line about the running jobs: rewritten in a terminal, a new one now and then in a log."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.next = time.monotonic()

    def show(self, running: Sequence[_Running]) -> None:
        if not running or time.monotonic() < self.next:
            return
        self.next = time.monotonic() + REPORT_SECONDS[self.terminal]
        line = "   ".join(job.progress() for job in running)
        print(f"\r{line}\x1b[K" if self.terminal else line, end="", file=sys.stderr, flush=True)
        if not self.terminal:
            print(file=sys.stderr)

    def close(self) -> None:
        if self.terminal:
            print(file=sys.stderr)
