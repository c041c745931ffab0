"""Several `arvid` commands side by side: jobs that share nothing, each in a process and with cores of its own.

On a CPU that is the way to use all cores: a small model trains as fast on one core as on two. On a GPU jobs run one
after another, since one of them fills it.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from arvid.contracts import UserError
from arvid.parent import child_environment

TAIL_BYTES = 4096
STOP_SECONDS = 60.0
"""How long a job may take to save and leave."""
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "1000000000"}
"""Has glibc keep freed memory for the next step instead of giving it back to the system: a sixth off a training step
over thousands of ids, whose logits are tens of megabytes."""
REPORT_SECONDS = {True: 1.0, False: 30.0}
"""Time between two reports of progress, by whether a terminal shows them."""


@dataclass(frozen=True)
class Job:
    """A command.

    Args:
        name: what reports of progress and the log file are called.
        arguments: those of `arvid`, such as ["evaluate", "runs/nova"].
    """

    name: str
    arguments: Sequence[str]


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
            job.ask_to_stop()
        for job in running:
            job.stop()
        reporter.close()


class _Running:
    """A job under way."""

    def __init__(self, job: Job, logs: Path, threads: int) -> None:
        self.name = job.name
        self.log = logs / f"{job.name}.log"
        command = ["arvid", *job.arguments]
        with self.log.open("wb") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    **KEEP_MEMORY,
                    **child_environment(),  # it ends with this process, even if that is killed
                    "OMP_NUM_THREADS": str(threads),
                },
                process_group=0,  # its data workers and ranks are stopped with it
            )

    def done(self) -> bool:
        """Whether the command has ended. Raises UserError if it failed."""
        code = self.process.poll()
        if code:
            last = "\n".join(self._tail().splitlines()[-20:])
            raise UserError(
                f"{self.name} failed (exit code {code}). The end of {self.log}:\n{last}"
            )
        return code is not None

    def ask_to_stop(self) -> None:
        """Let the command save and leave."""
        self.process.terminate()

    def stop(self) -> None:
        """Wait until the command has left, and end what is left of it."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def progress(self) -> str:
        """`name 12/400`: the newest count of its progress bars."""
        counts = re.findall(r"\| (\d+/\d+) \[", self._tail())
        return f"{self.name} {counts[-1] if counts else 'starts'}"

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
