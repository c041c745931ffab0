"""Runs several independent `arvid` commands in parallel, each in its own process with its own cores.

On a CPU this uses all cores: a small model trains as fast on one core as on two. On GPUs each job has one GPU for
itself.
"""

from __future__ import annotations

import os
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
from rich.console import Console
from rich.live import Live
from rich.text import Text

from arvid.contracts import UserError
from arvid.files import atomic_write
from arvid.processes import child_environment
from arvid.progress import last_line

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
        marker: file that gets the command when it has ended well. A job whose marker holds its command is not run.
    """

    name: str
    arguments: Sequence[str]
    marker: Path | None = None

    @property
    def command(self) -> str:
        """The command line."""
        return shlex.join(["arvid", *self.arguments])

    @property
    def has_ended(self) -> bool:
        """Whether an earlier run of this job ended well."""
        marker = self.marker
        return marker is not None and marker.is_file() and marker.read_text() == self.command


@dataclass(frozen=True)
class Slot:
    """The share of the machine that one job uses."""

    threads: int
    gpu: str | None = None
    """Value of CUDA_VISIBLE_DEVICES; None: unchanged."""


def slots(num_jobs: int) -> list[Slot]:
    """The slots of this machine for a number of jobs: one per GPU, or one per CPU core.

    On a CPU there is one job more than cores if that is all, since three jobs on two cores end earlier together than
    two and then one.
    """
    cores = torch.get_num_threads()
    if torch.cuda.is_available():
        gpus = _visible_gpus()[:num_jobs]
        return [Slot(max(cores // len(gpus), 1), gpu) for gpu in gpus]
    number = num_jobs if num_jobs <= cores + 1 else cores
    return [Slot(max(cores // number, 1))] * number


def _visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given:
        return given.split(",")
    return [str(i) for i in range(torch.cuda.device_count())]


def run_side_by_side(jobs: Sequence[Job], logs: Path) -> None:
    """Run all jobs in the slots of this machine. The output of a job goes to NAME.log in the folder `logs`.

    Jobs that have ended before are skipped. If a command fails, the other jobs are stopped. Raises UserError with the
    end of its log.
    """
    jobs = [job for job in jobs if not job.has_ended]
    if not jobs:
        return
    free = deque(slots(len(jobs)))
    logs.mkdir(parents=True, exist_ok=True)
    waiting = deque(jobs)
    running: list[_Running] = []
    reporter = _Reporter(len(jobs))
    try:
        while waiting or running:
            while waiting and free:
                running.append(_Running(waiting.popleft(), logs, free.popleft()))
            time.sleep(0.2)
            ended = [job for job in running if job.done()]
            free.extend(job.slot for job in ended)
            running = [job for job in running if job not in ended]
            reporter.show(running, waiting=len(waiting))
    finally:
        for job in running:
            job.ask_to_stop()
        for job in running:
            job.stop()
        reporter.close()


class _Running:
    """A running job."""

    def __init__(self, job: Job, logs: Path, slot: Slot) -> None:
        self.job, self.name, self.slot = job, job.name, slot
        self.log = logs / f"{job.name}.log"
        with self.log.open("wb") as log:
            log.write(f"$ {job.command}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "arvid", *job.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    **KEEP_MEMORY,
                    **child_environment(),  # the job ends with this process, even if this one is killed
                    "OMP_NUM_THREADS": str(slot.threads),
                    **({"CUDA_VISIBLE_DEVICES": slot.gpu} if slot.gpu else {}),
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
        if code == 0 and self.job.marker is not None:
            with atomic_write(self.job.marker) as temporary:
                temporary.write_text(self.job.command)
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
        """What it does, by the last line of progress in its log: `12/400 steps, train_loss 4.1, ..., 02:41 left`."""
        line = last_line(self._tail())
        if line is None:
            return "starts"
        work = "" if line.units == "steps" else f"{line.work}: "
        return f"{work}{line.count} {line.units}, {line.rest}"

    def _tail(self) -> str:
        with self.log.open("rb") as log:
            log.seek(max(self.log.stat().st_size - TAIL_BYTES, 0))
            return log.read().decode(errors="replace").replace("\r", "\n")


class _Reporter:
    """Reports the running jobs, one line for each: redrawn in a terminal, printed from time to time in a log."""

    def __init__(self, num_jobs: int) -> None:
        self.num_jobs = num_jobs
        self.terminal = sys.stderr.isatty()
        self.next = time.monotonic()
        self.live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        if self.terminal:
            self.live.start()

    def show(self, running: Sequence[_Running], *, waiting: int) -> None:
        if not running or time.monotonic() < self.next:
            return
        self.next = time.monotonic() + REPORT_SECONDS[self.terminal]
        lines = [f"{job.name} {job.progress()}" for job in running]
        ended = self.num_jobs - waiting - len(running)
        if waiting or ended:
            lines.insert(0, f"{ended} of {self.num_jobs} ended")
        if self.terminal:
            shown = Text("\n".join(lines), overflow="ellipsis", no_wrap=True)
            self.live.update(shown, refresh=True)
        else:
            print("\n".join(lines), file=sys.stderr, flush=True)

    def close(self) -> None:
        self.live.stop()
