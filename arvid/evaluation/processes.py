"""The processes that share an evaluation or a sampling, and the device of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def rank_and_count() -> tuple[int, int]:
    """Number of this process among those that share an evaluation, and how many they are."""
    from torch import distributed as dist  # slow to import, as below

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wait_for_all() -> None:
    """Until every process has come here."""
    from torch import distributed as dist

    if dist.is_initialized():
        dist.barrier()


@contextmanager
def sharing_processes() -> Iterator[None]:
    """Under torchrun: join the processes that it started, each with a GPU of its own where there are."""
    from torch import distributed as dist

    shared = launched()[1] > 1 and not dist.is_initialized()
    if shared:
        take_own_gpu()
        # for barriers alone, at which a process may wait for as long as another generates
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        yield
    finally:
        if shared:
            dist.destroy_process_group()


def launched() -> tuple[int, int]:
    """Number of this process among those that torchrun started, and how many they are; (0, 1) without torchrun."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def take_own_gpu() -> None:
    """Make the GPU that is this process's turn the one that "cuda" means, where there are GPUs."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def best_device() -> torch.device:
    """The GPU of this process, or the CPU where there is none."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
