"""Read any copy of MNIST: the four idx files, plain or gzipped, or Keras' mnist.npz."""

from __future__ import annotations

import gzip
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arvid.errors import UserError

Array = NDArray[np.uint8]
COUNTS = {"train": 60_000, "test": 10_000}
"""Digits in the original MNIST."""
_FILES = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Digits:
    """Pictures of digits with their labels."""

    pictures: Array
    """(N, H, W), 0 is background."""
    labels: Array | None
    """(N,), 0 to 9; None if the copy has no labels."""

    def part(self, start: int, stop: int) -> Digits:
        """The digits from `start` to `stop` (exclusive)."""
        labels = None if self.labels is None else self.labels[start:stop]
        return Digits(self.pictures[start:stop], labels)


def read_digits(source: Path) -> dict[str, Digits]:
    """Training and test digits in a folder or its subfolders. Raises UserError if they are missing."""
    packed = source if source.suffix == ".npz" else next(iter(sorted(source.rglob("*.npz"))), None)
    if packed is not None:
        return _read_npz(packed)
    return {split: _read_split(source, name) for split, name in _FILES.items()}


def _read_split(source: Path, name: str) -> Digits:
    pictures = _find(source, f"{name}-images")
    if pictures is None:
        raise UserError(
            f"{source} holds neither {name}-images-idx3-ubyte (or .gz) nor mnist.npz. Give a folder with MNIST's files."
        )
    labels = _find(source, f"{name}-labels")
    found = Digits(_read_idx(pictures, 3), None if labels is None else _read_idx(labels, 1))
    if found.labels is not None and len(found.labels) != len(found.pictures):
        raise UserError(f"{pictures} and {labels} hold different numbers of digits.")
    return found


def _find(source: Path, name: str) -> Path | None:
    return next((p for p in sorted(source.rglob(f"{name}*")) if "ubyte" in p.name), None)


def _read_idx(path: Path, num_axes: int) -> Array:
    """Read an idx file: two zero bytes, 8 (uint8), the number of axes, their lengths (big-endian), the values."""
    try:
        content = path.read_bytes()
        data = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        # The first four bytes as one number: 0x0800 (uint8) plus the number of axes.
        magic, *shape = struct.unpack_from(f">{1 + num_axes}I", data)
        if magic != 0x0800 + num_axes:
            raise ValueError(f"it begins with {magic:#x}")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * num_axes).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise UserError(f"{path} is no idx file of {num_axes} axes: {error}.") from error


def _read_npz(path: Path) -> dict[str, Digits]:
    try:
        with np.load(path) as file:
            return {s: Digits(file[f"x_{s}"], file[f"y_{s}"]) for s in ("train", "test")}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no copy of MNIST: {error}.") from error
