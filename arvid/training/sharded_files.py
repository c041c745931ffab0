"""Tensors of a sharded checkpoint: a folder into which each process writes its own parts.

The format is that of `torch.distributed.checkpoint`, so any number of processes can read the files. The index
`.metadata` is a pickle. The reader here accepts only the classes that such an index contains. So a file cannot import
or run anything else.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from arvid.errors import UserError
from arvid.importing import unpickling_fault

INDEX = ".metadata"
"""Name of the index: it lists each part of each tensor with its file and position."""
SUFFIX = ".distcp"
"""Suffix of the files with the parts of tensors."""

_ALLOWED: Mapping[str, set[str]] = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "TensorStorageMetadata",
        "TensorProperties",
        "ChunkStorageMetadata",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"} | {name for name, t in vars(torch).items() if isinstance(t, torch.dtype)},
    "pathlib": {"PosixPath"},
}
"""Module -> names in it that an index may use."""


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, group: ProcessGroup) -> None:
    """Write tensors, of which each process has a part or all. All processes of the group must call this.

    Raises CheckpointException in all processes if it fails in one.
    """
    save(dict(tensors), storage_writer=FileSystemWriter(folder), process_group=group)


def read_tensors(targets: Mapping[str, Tensor], folder: Path, *, alone: bool) -> None:
    """Read values into existing tensors. Sharded tensors get the part of this process.

    If `alone`, only this process reads. Otherwise all processes must call this. Raises UserError for unreadable files.
    """
    try:
        with warnings.catch_warnings():  # it warns if only one process reads
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load(dict(targets), storage_reader=_Reader(folder), no_dist=alone)
    except (
        OSError,
        RuntimeError,
        ValueError,
        pickle.UnpicklingError,
        CheckpointException,
    ) as error:
        raise UserError(f"{folder} cannot be read: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """One line for the user. An error of `torch.distributed.checkpoint` holds those of the processes."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return unpickling_fault(error)[:300]


def replace_tensors(value: Any, by: Callable[[str, Tensor], Any], name: str = "") -> Any:
    """A copy of nested dicts and lists in which each tensor is replaced by `by(name, tensor)`.

    A tensor's name is the path of keys to it: `optimizer_states.0.state.3.exp_avg`.
    """
    if isinstance(value, Tensor):
        return by(name, value)
    prefix = f"{name}." if name else ""
    if isinstance(value, Mapping):
        return {k: replace_tensors(v, by, f"{prefix}{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [replace_tensors(v, by, f"{prefix}{i}") for i, v in enumerate(value)]
    return value


class _Reader(FileSystemReader):
    """Torch's reader of such folders, but the index is read by `_Index`."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The index of the folder."""
        with open(Path(self.path) / INDEX, "rb") as file:
            metadata: Metadata = _Index(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Index(pickle.Unpickler):
    """An unpickler that raises UnpicklingError for a class or function outside `_ALLOWED`."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(
                f"{INDEX} names {module}.{name}, which an index never contains"
            )
        return super().find_class(module, name)
