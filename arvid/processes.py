"""Processes that share an evaluation or a sampling, the device of each, and child processes.

torchrun (RANK, WORLD_SIZE, LOCAL_RANK) or srun (SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID) starts the processes that
share work. Child processes are those that arvid starts. A killed process cannot stop its children. So each child checks
every second whether its parent still exists. If not, it ends itself, and its process group if it leads one (its data
workers and ranks). This module imports nothing slow, so a child starts to check before it imports torch.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from arvid.errors import UserError

if TYPE_CHECKING:
    import torch

WAIT_MINUTES = 120.0
"""Default limit of waiting for other processes: for their clips or their results."""
START_MINUTES = 10.0
"""Limit of waiting for other processes at the start."""
INTERACTIVE = ("bash", "interactive")
"""Names of interactive SLURM jobs, in which srun has not started the command (Lightning's rule)."""
PARENT_VARIABLE = "ARVID_PARENT"
PARENT_SECONDS = 1.0
"""Seconds between two checks of the parent."""


class Launch(NamedTuple):
    """Rank of this process among the processes started together."""

    rank: int = 0
    num_processes: int = 1
    local_rank: int = 0
    """Rank on its machine."""


def launch() -> Launch:
    """Rank and number of processes as torchrun or srun set them; (0, 1, 0) without either."""
    env = os.environ
    if "RANK" in env:
        return Launch(
            int(env["RANK"]), int(env.get("WORLD_SIZE", 1)), int(env.get("LOCAL_RANK", 0))
        )
    if env.get("SLURM_JOB_NAME") in INTERACTIVE:
        return Launch()
    count = int(env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", 1)))
    if count == 1 or "SLURM_PROCID" not in env:  # one task: the shell of sbatch or salloc too
        return Launch()
    return Launch(int(env["SLURM_PROCID"]), count, int(env.get("SLURM_LOCALID", 0)))


def launched() -> tuple[int, int]:
    """Rank and number of processes as torchrun or srun set them; (0, 1) without either."""
    return launch()[:2]


def rank_and_count() -> tuple[int, int]:
    """Rank and number of the processes that have joined in `sharing_processes`; (0, 1) otherwise."""
    from torch import distributed as dist  # slow to import, as below

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wait_for_all() -> None:
    """Block until all processes have called this. Raises UserError if one has ended or is too late."""
    from torch import distributed as dist

    if dist.is_initialized():
        with _explained():
            dist.barrier()


def gather(value: Any) -> list[Any] | None:
    """The values of all processes in the first process, None in the others. Raises as `wait_for_all` does."""
    from torch import distributed as dist

    if not dist.is_initialized():
        return [value]
    rank, count = rank_and_count()
    found = [None] * count if rank == 0 else None
    with _explained():
        dist.gather_object(value, found)
    return found


@contextmanager
def sharing_processes(wait_minutes: float = WAIT_MINUTES) -> Iterator[None]:
    """Under torchrun or srun: join all started processes, each with its own GPU if there are GPUs.

    Raises UserError if they cannot connect, and if one waits longer than `wait_minutes` for another.
    """
    from torch import distributed as dist

    shared = launch().num_processes > 1 and not dist.is_initialized()
    if shared:
        take_own_gpu()
        _join(wait_minutes)
    try:
        yield
    finally:
        if shared:
            dist.destroy_process_group()


def take_own_gpu() -> None:
    """If there are GPUs, make "cuda" mean the GPU of this process (by its local rank)."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(launch().local_rank % torch.cuda.device_count())


def best_device() -> torch.device:
    """The GPU of this process, or the CPU without GPUs."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _join(wait_minutes: float) -> None:
    """Connect to the other processes by gloo, which is enough for barriers and for clips on the CPU."""
    from torch import distributed as dist
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    rank, count, _ = launch()
    host, port = _master_address()
    torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # its agent runs the store
    try:
        store = TCPStore(
            host,
            port,
            count,
            is_master=rank == 0 and not torchrun,
            timeout=timedelta(minutes=min(START_MINUTES, wait_minutes)),
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group(
            "gloo",
            store=PrefixStore(f"arvid-{attempt}", store),
            rank=rank,
            world_size=count,
            timeout=timedelta(minutes=wait_minutes),
        )
    except (dist.DistError, RuntimeError) as error:
        raise UserError(
            f"{count} processes should share this work, but did not connect at {host}:{port} ({_first_line(error)}). "
            "Start all of them with torchrun or srun; in an sbatch script, write srun before the command."
        ) from error


def _master_address() -> tuple[str, int]:
    """Address and port of the first process, from MASTER_ADDR and MASTER_PORT or else from SLURM's variables."""
    env = os.environ
    host, port = env.get("MASTER_ADDR"), env.get("MASTER_PORT")
    if host is None:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_NODELIST", "127.0.0.1"))
        host = SLURMEnvironment.resolve_root_node_address(nodes)
    if port is None:  # by job and step, so that steps of a job may run at the same time
        job, step = (int(env.get(f"SLURM_{name}", 0)) for name in ("JOB_ID", "STEP_ID"))
        port = str(15_000 + (job + 101 * step) % 10_000)
    return host, int(port)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn a failed wait for other processes into a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"Another process that shares this work has ended or is too late ({_first_line(error)}). Finished work is "
            "kept: give the same command again."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def child_environment() -> dict[str, str]:
    """Environment variables for a child that runs arvid and must end with this process."""
    return {PARENT_VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """Watch the parent in a thread, if the parent started this process with `child_environment`."""
    # Removed, because it is not meant for this process's own children.
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is not None:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:  # an orphan gets another parent
        time.sleep(PARENT_SECONDS)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
