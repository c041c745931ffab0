"""Values of the frames of a video, such as actions, in an .npz file beside it.

`walks/a.npz` has the values of `walks/a.mp4`: an array (T, ...) for each condition per frame (see
`arvid.nn.conditions`), under its name. T is at least the number of frames of the video. TECO (arXiv:2210.02396)
publishes its Minecraft videos in this layout.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arvid.errors import UserError
from arvid.nn.conditions import ClassId, Vector, condition

Values = NDArray[Any]
Conditions = Mapping[str, Sequence[str]]
"""Condition -> names of its class ids or vector components; without names any number of them is valid."""
_READ_ERRORS = (
    *(OSError, ValueError, TypeError, EOFError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)


def values_file(video: Path) -> Path:
    """The file of a video's values: `a.npz` for `a.mp4`, and `a.1.npz` for the folder of frames `a.1`."""
    return video.with_name(f"{video.name}.npz") if video.is_dir() else video.with_suffix(".npz")


def require_per_frame(names: Iterable[str]) -> None:
    """Raise UserError for an unknown condition, and for one with a value per clip."""
    for name in names:
        if not condition(name).per_frame:
            raise UserError(
                f"The condition {name} has a value per clip. Files beside videos hold conditions per frame."
            )


def read_values(video: Path, conditions: Conditions) -> dict[str, Values]:
    """The values (T, ...) of a video by condition.

    Raises UserError if the file is missing or damaged, lacks a condition, or holds values that do not fit it.
    """
    path = values_file(video)
    if not path.is_file():
        raise UserError(
            f"{video} has no values of {', '.join(conditions)}: there is no {path.name} beside it. Write it, with an "
            "array for each condition (docs/datasets.md)."
        )
    arrays = read_arrays(path, conditions)
    return {name: _checked(path, name, arrays[name], names) for name, names in conditions.items()}


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, Values]:
    """Arrays of an .npz file by name, without unpickling. Raises UserError if it is damaged or lacks one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            known = list(file)
            found = {name: file[name] for name in names if name in known}
    # TypeError: an .npy file (a single array). RuntimeError: an encrypted file, or an unknown compression. MemoryError:
    # a shape in a damaged header.
    except _READ_ERRORS as error:
        raise UserError(f"{path} cannot be read as .npz: {error}. Write it again.") from error
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{path} has no array {missing[0]!r}, only: {', '.join(known) or 'none'}.")
    return found


def _checked(path: Path, name: str, values: Values, names: Sequence[str]) -> Values:
    """Values converted to the condition's type. Raises UserError if they do not fit it or its names."""
    kind = condition(name)
    dtype = np.dtype(kind.dtype)
    if values.ndim == 0 or values.dtype.kind not in "iuf":
        raise UserError(f"{path}: {name} must be numbers, one or more for each frame.")
    if dtype.kind == "i" and values.dtype.kind == "f":
        raise UserError(f"{path}: {name} must be whole numbers, got {values.dtype}.")
    given = f"{len(names)} names are given: {', '.join(names)}"
    if isinstance(kind, ClassId):
        if values.ndim != 1:
            raise UserError(f"{path}: {name} must be one number per frame, got {values.shape}.")
        if names and values.max(initial=0) >= len(names):
            raise UserError(f"{path}: {name} go up to {values.max()}, but {given}.")
    if isinstance(kind, Vector):
        if values.ndim != 2:
            raise UserError(f"{path}: {name} must be a vector per frame, got {values.shape}.")
        if names and values.shape[1] != len(names):
            raise UserError(f"{path}: {name} have {values.shape[1]} numbers, but {given}.")
    return values.astype(dtype)


def values_of_frames(
    video: Path, conditions: Conditions, indices: NDArray[np.int64]
) -> dict[str, Values]:
    """The values of frames (N,) of a video by condition, each (N, ...). Raises UserError as `read_values` does."""
    found = read_values(video, conditions)
    for name, values in found.items():
        if indices.max() >= len(values):
            raise UserError(
                f"{values_file(video)}: {name} has {len(values)} rows, but a clip takes frame {indices.max()} of "
                f"{video.name}. Write a row for each frame."
            )
    return {name: values[indices] for name, values in found.items()}


def values_digest(videos: Iterable[Path], conditions: Conditions) -> str:
    """Hex SHA-256 of the values of videos, in order. It does not depend on the compression of the files."""
    digest = hashlib.sha256()
    for video in videos:
        for name, values in read_values(video, conditions).items():
            digest.update(f"{name}{values.dtype.str}{values.shape}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
