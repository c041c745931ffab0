"""Writes the checkpoints of a sharded training as folders, in a thread, while the training goes on.

The training waits only while tensors are copied to the memory of the host. One checkpoint is written at a time. A
folder has a temporary name until it is complete. After each stage of a write the processes tell each other whether it
succeeded, in a process group of their own. So a write succeeds in all processes or fails in all.
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
        # The training uses the default process group at the same time, and NCCL has no collectives for CPU tensors.
        self._group = torch.distributed.new_group(backend="gloo", timeout=timeout)
        self._rank = torch.distributed.get_rank()
        self._device = device
        on_gpu = device.type == "cuda"
        # by position: pinned memory; no memory shared with other processes; no staging thread; non-blocking copies
        self._stager = DefaultStager(StagingOptions(on_gpu, False, False, on_gpu))
        self._background = Background()

    def save(
        self,
        checkpoint: dict[str, Any],
        path: Path,
        when_complete: Callable[[], None] | None = None,
    ) -> None:
        """Copy a checkpoint to the memory of the host, and write it as a folder, completely or not at all.

        This waits first until the previous write has ended. If that failed, this also waits for its own write.

        Args:
            checkpoint: nested data with tensors.
            path: the folder.
            when_complete: called in the first process when the folder is complete. With it, this returns while the
                folder is written, and a failure is logged as a warning at once. If None, this waits for the write.

        Raises UserError if this waits for its own write, and the write fails.
        """
        failed = self._has_failed()
        tensors: dict[str, Tensor] = {}

        def take(name: str, tensor: Tensor) -> Tensor:
            tensors[name] = tensor.detach()
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

        content = replace_tensors(checkpoint, take)
        copies = cast(dict[str, Tensor], self._stager.stage(tensors))
        self._background.start(partial(self._write, content, copies, path, when_complete))
        if failed or when_complete is None:
            self.wait()

    def wait(self) -> None:
        """Wait until the last write has ended. Raises UserError if it failed."""
        self._background.wait()

    def _has_failed(self) -> bool:
        """Wait for the previous write, and return whether it failed."""
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
        when_complete: Callable[[], None] | None,
    ) -> None:
        if self._device.type == "cuda":  # a new thread uses the first GPU by default
            torch.cuda.set_device(self._device)
        temporary = path.with_name(f".{path.name}")
        try:
            self._in_first_process(partial(_make_folder, temporary))
            write_tensors(tensors, temporary, self._group)
            digests = self._in_all_processes(partial(self._digests, temporary))
            shards = {name: digest for part in digests for name, digest in sorted(part.items())}
            content = {**content, SHARDS: shards}
            self._in_first_process(partial(_complete, content, temporary, path, when_complete))
        except (Exception, CheckpointException) as error:
            message = f"The checkpoint {path} could not be written: {reason_of(error)}"
            if self._rank == 0:
                with suppress(OSError):
                    remove(temporary)
            if when_complete is not None:
                warn(f"{message}. The last checkpoint stays, and the training tries the next one.")
            raise UserError(
                f"{message}. Is the disk full? The last checkpoint stays. The same command resumes from it."
            ) from error

    def _digests(self, folder: Path) -> dict[str, str]:
        """SHA-256 of each file that this process has written, by name."""
        own = list(folder.glob(f"__{self._rank}_*"))
        own += [folder / INDEX] if self._rank == 0 else []
        return {path.name: sha256_file(path) for path in own}

    def _in_first_process(self, work: Callable[[], None]) -> None:
        """Call `work` in the first process; the others wait. Raises OSError in all processes if it fails."""
        self._in_all_processes(work if self._rank == 0 else lambda: None)

    def _in_all_processes(self, work: Callable[[], Any]) -> list[Any]:
        """Call `work` in all processes; returns the results of all. Raises OSError in all if it fails in one."""
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
    """Make an empty folder in place of one that an earlier process may have left."""
    remove(temporary)
    temporary.mkdir(parents=True)


def _complete(
    content: dict[str, Any],
    temporary: Path,
    path: Path,
    when_complete: Callable[[], None] | None,
) -> None:
    """Write the rest of the checkpoint, and give the folder its name."""
    save_checkpoint(content, temporary / CONTENT)
    put_in_place(temporary, path)
    if when_complete is not None:
        when_complete()
