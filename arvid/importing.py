"""Other people's checkpoints: read without running their code, every tensor accounted for.

An importer is a class beside the part that it is for: `paradigms/nova/import_nova.py` holds the one of
`arvid import nova`. Other packages register theirs by entry points of the group `arvid.importers`, and exporters by
`arvid.exporters`.
"""

from __future__ import annotations

import argparse
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from arvid.contracts import UserError

LISTED = 40
"""Tensors that an error message names at most."""


@dataclass(frozen=True)
class Move:
    """One tensor: its name and shape in the checkpoint, and its name in arvid."""

    source: str
    shape: tuple[int, ...]
    target: str


@dataclass(frozen=True)
class Imported:
    """What an importer has done."""

    moves: list[Move]
    unused: list[str]
    """What the file holds besides the weights: optimiser, step, ..."""


class Importer(ABC):
    """Reads one kind of published checkpoint. The class's docstring is the help of `arvid import KIND`."""

    suffix: ClassVar[str]
    """How the file that it writes is called: .ckpt for a generator, .safetensors for a tokenizer."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:  # noqa: B027 (optional)
        """Declare options of its own; none by default."""

    @abstractmethod
    def run(self, file: Path, out: Path, options: argparse.Namespace) -> Imported:
        """Write what the published `file` (or folder) holds to `out`. Raises UserError where tensors do not fit."""


class Exporter(ABC):
    """Writes a model in the layout of another code base. The class's docstring is the help of `arvid export KIND`."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:  # noqa: B027 (optional)
        """Declare options of its own; none by default."""

    @abstractmethod
    def run(self, checkpoint: Path, out: Path, options: argparse.Namespace) -> list[str]:
        """Write the model in `checkpoint` to the folder `out`; returns the names of what was written."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The top level of a file of `torch.save`, tensors on the CPU (mapped from disk where the format allows).

    Raises UserError where there is no such file, or where it cannot be read without running code in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    try:
        mapped = zipfile.is_zipfile(path)  # files of before torch 1.6 are not
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load has no error class of its own
        raise UserError(
            f"{path}: not a checkpoint that can be read safely ({unpickling_fault(error)})."
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}, not a dict of weights.")
    return checkpoint


def unpickling_fault(error: Exception) -> str:
    """What torch.load says is wrong, in one line, without its advice to run the code in a file."""
    lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    return next((line for line in lines if line.startswith("WeightsUnpickler error")), lines[0])


def strip_prefix(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Names without a prefix that all of them have (DDP's "module.", say); unchanged where one has it not."""
    shared = all(name.startswith(prefix) for name in tensors)
    return {name.removeprefix(prefix) if shared else name: value for name, value in tensors.items()}


def match(
    tensors: Mapping[str, Any], own: Mapping[str, Tensor], names: Mapping[str, str]
) -> tuple[dict[str, Tensor], list[Move]]:
    """Give each tensor to the own one that it belongs to: a state dict in the own shapes, and what went where.

    Args:
        tensors: the checkpoint's, by its own names.
        own: arvid's, for their shapes; they may lie on the meta device.
        names: the checkpoint's name for each of arvid's.

    Axes of size 1 do not count. Raises UserError with a list of the tensors that are missing, left over, of
    another shape, or no floats.
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
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        return [f"{name} is {kind}, not floats"]
    if _without_ones(value) != _without_ones(own):
        return [f"{name} is {tuple(value.shape)}, not {tuple(own.shape)}"]
    return []


def _without_ones(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _listed(faults: list[str]) -> str:
    more = f"; and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
    return "; ".join(sorted(faults)[:LISTED]) + more
