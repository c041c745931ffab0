"""Reads published checkpoints without running code in them, and checks every tensor.

An importer is a class in the folder of its plug-in: `paradigms/nova/import_nova.py` is the importer of
`arvid import nova`. Other packages register importers by entry points of the group `arvid.importers`, and exporters
by `arvid.exporters`.
"""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from arvid.contracts import UserError

_FAULT = re.compile(
    r"WeightsUnpickler error: (.*?)(?: Please use `torch| Check the documentation|$)"
)
"""The fault in a message of torch.load, before the advice to trust the file."""
LISTED = 40
"""Maximum number of tensors in an error message."""


@dataclass(frozen=True)
class Move:
    """One tensor: its name and shape in the checkpoint, and its name in arvid."""

    source: str
    shape: tuple[int, ...]
    target: str


@dataclass(frozen=True)
class Imported:
    """Result of an import."""

    moves: list[Move]
    unused: list[str]
    """Entries of the file that are not weights: optimiser, step, ..."""


class Importer(ABC):
    """Reads one kind of published checkpoint. The class's docstring is the help of `arvid import KIND`."""

    suffix: ClassVar[str]
    """Suffix of the written file: .ckpt for a generator, .safetensors for a tokenizer."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:  # noqa: B027 (optional)
        """Declare the importer's own options; none by default."""

    @abstractmethod
    def run(self, file: Path, out: Path, options: argparse.Namespace) -> Imported:
        """Convert the published `file` (or folder) to `out`. Raises UserError if tensors do not fit."""


class Exporter(ABC):
    """Writes a model in the layout of another code base. The class's docstring is the help of `arvid export KIND`."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:  # noqa: B027 (optional)
        """Declare the exporter's own options; none by default."""

    @abstractmethod
    def run(self, checkpoint: Path, out: Path, options: argparse.Namespace) -> list[str]:
        """Write the model in `checkpoint` to the folder `out`; returns the names of the written parts."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dict in a file of `torch.save`, with tensors on the CPU (mapped from disk if the format allows).

    Raises UserError if the file is missing, if it cannot be read without running code in it, or if the name of a tensor
    is not text.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    try:
        mapped = zipfile.is_zipfile(path)  # files of before torch 1.6 are not
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load has no error class of its own
        raise UserError(
            f"{path}: not a checkpoint that can be read safely ({_fault(path, error)})."
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}, not a dict of weights.")
    for part in (checkpoint, *(value for value in checkpoint.values() if isinstance(value, dict))):
        odd = [key for key in part if isinstance(part[key], Tensor) and not isinstance(key, str)]
        if odd:
            raise UserError(f"{path}: the name of a tensor is {odd[0]!r:.40}, which is not text.")
    return checkpoint


def read_training_checkpoint(path: str | Path) -> dict[str, Any]:
    """Like `read_checkpoint`, for files that contain objects of other packages, such as the arguments of a training.

    Each class of another package is replaced by a class that only keeps attributes. Nothing is imported or run.
    """
    with torch.serialization.safe_globals(list(_stand_ins(path))):
        return read_checkpoint(path)


def _stand_ins(path: str | Path) -> Iterator[tuple[type, str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a damaged file can raise anything; `read_checkpoint` then raises UserError
        return
    for name in names:
        if "\0" in name:  # not the name of a class; `read_checkpoint` refuses the file
            continue
        yield type(name.rsplit(".", 1)[-1], (_StandIn,), {}), name


class _StandIn:
    """Replaces a class of another package. It keeps attributes from a dict; other pickled state (numpy's) is lost."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or `torch.save` file. Raises UserError if it cannot be read safely."""
    if path.suffix != ".safetensors":
        return read_checkpoint(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        fault = _fault(path, error) if path.is_file() else error
        raise UserError(f"{path}: not a safetensors file ({fault}).") from error


def unpickling_fault(error: BaseException) -> str:
    """An error of torch.load in one line, without its advice to run the code in the file."""
    text = " ".join(str(error).split())
    found = _FAULT.search(text)
    if found:
        return found[1]
    return text if any(map(str.isalpha, text)) else repr(error)  # a KeyError has a number alone


def _fault(path: Path, error: Exception) -> str:
    """Why a file of weights cannot be read: what it holds instead, or else the error in one line."""
    with path.open("rb") as file:
        first = file.read(64)
    if first.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: fetch the file with `git lfs pull`"
    if first.lstrip().startswith(b"<"):
        return "it is a web page: download the file again"
    return unpickling_fault(error)


def require_dicts(file: Path, checkpoint: Mapping[str, Any], *names: str) -> None:
    """Raise UserError unless a checkpoint has a dict under each of these names."""
    for name in names:
        if name not in checkpoint:
            found = ", ".join(f"{other!r:.80}" for other in islice(checkpoint, LISTED))
            more = ", ..." if len(checkpoint) > LISTED else ""
            raise UserError(f"{file}: has no {name!r}, but {found or 'nothing'}{more}.")
        if not isinstance(checkpoint[name], dict):
            kind = type(checkpoint[name]).__name__
            raise UserError(f"{file}: {name!r} is a {kind}, not a dict.")


def strip_prefix(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Remove a prefix from all names (such as DDP's "module."); unchanged if not all names have it."""
    shared = all(name.startswith(prefix) for name in tensors)
    return {name.removeprefix(prefix) if shared else name: value for name, value in tensors.items()}


def published_name(
    own: str, prefixes: Mapping[str, str], layers: Mapping[str, Mapping[str, str]]
) -> str:
    """The name in the checkpoint of one of arvid's tensors.

    Args:
        own: arvid's name.
        prefixes: beginning of a name in arvid -> in the checkpoint. The first match is used.
        layers: part of a name in the checkpoint -> replacements in names that have it, arvid's -> the checkpoint's.
    """
    prefix = next(p for p in prefixes if own.startswith(p))
    name = prefixes[prefix] + own.removeprefix(prefix)
    for old, new in next((found for part, found in layers.items() if part in name), {}).items():
        name = name.replace(old, new)
    return name


def match(
    tensors: Mapping[str, Any], own: Mapping[str, Tensor], names: Mapping[str, str]
) -> tuple[dict[str, Tensor], list[Move]]:
    """Map a checkpoint's tensors to arvid's names and shapes. Returns a state dict, and the list of all moves.

    Args:
        tensors: the checkpoint's tensors, by their names there.
        own: arvid's tensors, for their shapes; they may be on the meta device.
        names: name in arvid -> name in the checkpoint.

    Shapes may differ in axes of size 1. Raises UserError with a list of tensors that are missing, left over, of another
    shape, not dense, or not floats where arvid's are.
    """
    sources = {names[target]: target for target in own}
    faults = [f"missing {name}" for name in sources.keys() - tensors.keys()]
    faults += [f"unexpected {name}" for name in tensors.keys() - sources.keys()]
    for name in sources.keys() & tensors.keys():
        faults += _misfit(name, tensors[name], own[sources[name]])
    if faults:
        raise UserError(f"{len(faults)} of its tensors do not fit: {_listed(faults)}.")
    state = {target: tensors[name].reshape(own[target].shape) for name, target in sources.items()}
    return state, [Move(n, tuple(tensors[n].shape), target) for n, target in sources.items()]


def _misfit(name: str, value: Any, own: Tensor) -> list[str]:
    floats = own.is_floating_point()  # the counters of batch norms are integers
    if not isinstance(value, Tensor) or value.is_floating_point() != floats:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        return [f"{name} is {kind}, not {'floats' if floats else 'integers'}"]
    without_values = value.is_meta and not own.is_meta
    if without_values or value.is_nested or value.layout != torch.strided:
        kind = "without values" if without_values else "nested" if value.is_nested else "sparse"
        return [f"{name} is {kind}, not a dense tensor"]
    if _without_ones(value) != _without_ones(own):
        return [f"{name} is {tuple(value.shape)}, not {tuple(own.shape)}"]
    return []


def _without_ones(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _listed(faults: list[str]) -> str:
    more = f"; and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    return "; ".join(sorted(faults)[:LISTED]) + more
