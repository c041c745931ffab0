"""Writes the checkpoints of a sharded training as folders, in a thread, while the training goes on.

The training waits only while tensors are copied to the host. One write runs at a time. A folder has a temporary name
until it is complete. The processes agree on each stage of a write in a process group of their own, so a write succeeds
in all processes or fails in all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from arvid.errors import UserError
from arvid.files import sha256_file
from arvid.training.background import Background
from arvid.training.checkpoint_io import CONTENT, SHARDS, save_checkpoint
from arvid.training.guards import warn
from arvid.training.saving import put_in_place, remove
from arvid.training.sharded_files import INDEX, reason_of, replace_tensors, write_tensors


class ShardedWriter:
    """Writes checkpoints of which each process has a part. All processes must make one, and call its methods.

    Args:
        device: device of the training.
        timeout: how long a process waits for the others.
    """

    def __init__(self, device: torch.device, timeout: timedelta | None) -> None:
        # The training's own group is in use meanwhile, and NCCL has no collectives for the CPU.
        self._group = torch.distributed.new_group(backend="gloo", timeout=timeout)
        self._rank = torch.distributed.get_rank()
        self._device = device
        on_gpu = device.type == "cuda"
        # pinned memory, no memory shared with other processes, no thread for the copies, copies that do not block
        self._stager = DefaultStager(StagingOptions(on_gpu, False, False, on_gpu))
        self._background = Background()

    def save(
        self, checkpoint: dict[str, Any], path: Path, then: Callable[[], None] | None = None
    ) -> None:
        """Copy a checkpoint to the host and write it as a folder, completely or not at all.

        The write before must end first. If it failed, this one is waited for.

        Args:
            checkpoint: nested data with tensors.
            path: the folder.
            then: called in the first process when the folder is complete. With it, the write goes on after the return,
                and a failure is logged as a warning at once. Without it, this waits.

        Raises UserError if a write fails that this waits for.
        """
        failed = self._has_failed()
        tensors: dict[str, Tensor] = {}

        def take(name: str, tensor: Tensor) -> Tensor:
            tensors[name] = tensor.detach()
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

        content = replace_tensors(checkpoint, take)
        copies = cast(dict[str, Tensor], self._stager.stage(tensors))
        self._background.start(partial(self._write, content, copies, path, then))
        if failed or then is None:
            self.wait()

    def wait(self) -> None:
        """Wait until the last write has ended. Raises UserError if it failed."""
        self._background.wait()

    def _has_failed(self) -> bool:
        try:
            self.wait()
        except UserError:
            return True
        return False

    def _write(
        self,
        content: dict[str, Any],
        tensors: dict[str, Tensor],
        path: Path,
        then: Callable[[], None] | None,
    ) -> None:
        if self._device.type == "cuda":  # a new thread would use the first GPU
            torch.cuda.set_device(self._device)
        temporary = path.with_name(f".{path.name}")
        try:
            self._first(partial(_make_folder, temporary))
            write_tensors(tensors, temporary, self._group)
            digests = self._all(partial(self._digests, temporary))
            shards = {name: digest for part in digests for name, digest in sorted(part.items())}
            self._first(partial(_complete, {**content, SHARDS: shards}, temporary, path, then))
        except (Exception, CheckpointException) as error:
            message = f"The checkpoint {path} is not written: {reason_of(error)}"
            if self._rank == 0:
                with suppress(OSError):
                    remove(temporary)
            if then is not None:
                warn(f"{message}. The last checkpoint stays, and the next one is tried again.")
            raise UserError(
                f"{message}. Is the disk full? The last checkpoint stays; the same command resumes from it."
            ) from error

    def _digests(self, folder: Path) -> dict[str, str]:
        """SHA-256 of each file that this process has written, by name."""
        own = list(folder.glob(f"__{self._rank}_*"))
        own += [folder / INDEX] if self._rank == 0 else []
        return {path.name: sha256_file(path) for path in own}

    def _first(self, work: Callable[[], None]) -> None:
        """`work()` in the first process; the others wait. Raises OSError in all processes if it fails."""
        self._all(work if self._rank == 0 else lambda: None)

    def _all(self, work: Callable[[], Any]) -> list[Any]:
        """The results of `work()` in all processes. Raises OSError in all processes if it fails in one."""
        try:
            own = work(), ""
        except Exception as error:
            own = None, reason_of(error)
        found: list[Any] = [None] * torch.distributed.get_world_size(self._group)
        torch.distributed.all_gather_object(found, own, group=self._group)
        failures = [failure for _, failure in found if failure]
        if failures:
            raise OSError(failures[0])
        return [result for result, _ in found]


def _make_folder(temporary: Path) -> None:
    remove(temporary)
    temporary.mkdir(parents=True)


def _complete(
    content: dict[str, Any], temporary: Path, path: Path, then: Callable[[], None] | None
) -> None:
    save_checkpoint(content, temporary / CONTENT)
    put_in_place(temporary, path)
    if then is not None:
        then()
