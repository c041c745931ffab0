"""Runs several independent `arvid` commands in parallel, each in its own process with its own cores.

On a CPU this uses all cores: a small model trains as fast on one core as on two. On a GPU jobs run one after another,
since one job uses the whole GPU.
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
"""Time for a job to save its state and exit, before it is killed."""
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "1000000000"}
"""Makes glibc keep freed memory for the next step instead of returning it to the system. A training step with
thousands of ids, whose logits take tens of megabytes, gets a sixth faster."""
REPORT_SECONDS = {True: 1.0, False: 30.0}
"""Seconds between two progress reports. Key: whether they go to a terminal."""


@dataclass(frozen=True)
class Job:
    """A command.

    Args:
        name: used in progress reports and as the name of the log file.
        arguments: arguments of `arvid`, e.g. ["evaluate", "runs/nova"].
    """

    name: str
    arguments: Sequence[str]


def run_side_by_side(jobs: Sequence[Job], logs: Path) -> None:
    """Run all jobs, on a CPU in parallel. The output of a job goes to NAME.log in the folder `logs`.

    If a command fails, the other jobs are stopped. Raises UserError with the end of its log.
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
    """A running job."""

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
                    **child_environment(),  # the job ends with this process, even if this one is killed
                    "OMP_NUM_THREADS": str(threads),
                },
                process_group=0,  # its data workers and ranks can be stopped with it
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
        """Ask the command to save its state and exit."""
        self.process.terminate()

    def stop(self) -> None:
        """Wait for the command to exit, then kill its remaining processes."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def progress(self) -> str:
        """`name 12/400`: the last count of its progress bars."""
        counts = re.findall(r"\| (\d+/\d+) \[", self._tail())
        return f"{self.name} {counts[-1] if counts else 'starts'}"

    def _tail(self) -> str:
        with self.log.open("rb") as log:
            log.seek(max(self.log.stat().st_size - TAIL_BYTES, 0))
            return log.read().decode(errors="replace").replace("\r", "\n")


class _Reporter:
    """Reports the running jobs in one line: overwritten in a terminal, a new line from time to time in a log."""

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
