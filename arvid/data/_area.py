"""Shrinking frames by area: OpenCV's INTER_AREA at less than half its time, and only the part that is kept of a crop.

OpenCV goes through the columns of each row one by one; here both passes add up whole rows, which vectorises. One pixel
in some ten thousand differs by one level, where its sum lies between two and is rounded in another order.
"""

from __future__ import annotations

import threading
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

try:
    # Sums of rows into a buffer that is used again: the public product takes new memory each time, and its time.
    from scipy.sparse._sparsetools import csr_matvecs  # type: ignore[import-untyped]
except ImportError:  # then OpenCV does it
    csr_matvecs = None

Frames = NDArray[np.uint8]
Rows = NDArray[np.float32]
Weights = tuple[NDArray[np.int32], NDArray[np.int32], Rows]
"""A sparse matrix (new, old) by rows: where each begins, the columns, the values."""

MAX_VALUES = 3 * 2**20
"""Values of a frame up to which buffers are kept; larger frames are OpenCV's."""
_buffers = threading.local()


def can_shrink(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether `shrink` does it: both axes shrink, and not by whole numbers, for which OpenCV is fast."""
    if csr_matvecs is None or 3 * old[0] * old[1] > MAX_VALUES or old == new:
        return False
    whole = all(a % b == 0 for a, b in zip(old, new, strict=True))
    return not whole and old[0] >= new[0] and old[1] >= new[1]


def shrink(
    pixels: Frames, new: tuple[int, int], top: int, left: int, size: tuple[int, int]
) -> Frames:
    """The part of `size` at (top, left) of a frame (H, W, 3) that is scaled to `new` (height and width)."""
    (old_height, old_width, _), (height, width) = pixels.shape, size
    rows = _weights(old_height, new[0], top, top + height)
    columns = _weights(old_width, new[1], left, left + width)
    whole = _buffer("whole", (old_height, old_width * 3))
    np.copyto(whole, pixels.reshape(old_height, -1))
    low = _buffer("low", (height, old_width * 3))
    _add_rows(rows, whole, low)
    turned = _buffer("turned", (old_width, height * 3))
    cv2.transpose(low.reshape(height, old_width, 3), turned.reshape(old_width, height, 3))
    small = _buffer("small", (width, height * 3))
    _add_rows(columns, turned, small)
    levels = np.rint(small, out=small).astype(np.uint8).reshape(width, height, 3)
    return cv2.transpose(levels).astype(np.uint8, copy=False)


def _add_rows(weights: Weights, rows: Rows, out: Rows) -> None:
    starts, columns, values = weights
    out.fill(0)
    csr_matvecs(
        len(starts) - 1,
        len(rows),
        rows.shape[1],
        starts,
        columns,
        values,
        rows.ravel(),
        out.ravel(),
    )


@lru_cache(maxsize=256)
def _weights(old: int, new: int, start: int, stop: int) -> Weights:
    """What share each of the old pixels has in the new ones from `start` to `stop`."""
    scale = old / new
    starts, columns, values = [0], [], []
    for index in range(start, stop):
        first, last = index * scale, min((index + 1) * scale, old)
        covered = range(int(first), min(int(np.ceil(last)), old))
        shares = [min(last, j + 1) - max(first, j) for j in covered]
        kept = [(j, s / (last - first)) for j, s in zip(covered, shares, strict=True) if s > 1e-3]
        columns += [j for j, _ in kept]
        values += [share for _, share in kept]
        starts.append(len(columns))
    return np.array(starts, np.int32), np.array(columns, np.int32), np.array(values, np.float32)


def _buffer(name: str, shape: tuple[int, int]) -> Rows:
    """Memory of this thread under a name, as long as the shape stays the same."""
    kept: Rows | None = getattr(_buffers, name, None)
    if kept is None or kept.shape != shape:
        kept = np.empty(shape, np.float32)
        setattr(_buffers, name, kept)
    return kept
