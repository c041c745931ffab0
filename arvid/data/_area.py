"""Shrink frames by area averaging: OpenCV's INTER_AREA in less than half its time, computed for the crop only.

OpenCV walks through the columns of each row one by one. Here both passes add whole rows, which uses vector
instructions. About one pixel in ten thousand differs by one level, because its sum is rounded in another order.
"""

from __future__ import annotations

import threading
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

try:
    # Private, because it writes into a given buffer. The public product allocates its result each time.
    from scipy.sparse._sparsetools import csr_matvecs  # type: ignore[import-untyped]
except ImportError:  # `can_shrink` is False then, and OpenCV does the work
    csr_matvecs = None

Frames = NDArray[np.uint8]
Rows = NDArray[np.float32]
Weights = tuple[NDArray[np.int32], NDArray[np.int32], Rows]
"""Sparse matrix (new, old) in CSR form: row starts, column indices, values."""

MAX_VALUES = 3 * 2**20
"""Largest frame (H * W * 3 values) that gets a buffer. OpenCV scales larger frames."""
_buffers = threading.local()


def can_shrink(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether `shrink` handles these sizes: no axis grows, and not both by whole factors (OpenCV is fast there)."""
    if csr_matvecs is None or 3 * old[0] * old[1] > MAX_VALUES or old == new:
        return False
    whole = all(a % b == 0 for a, b in zip(old, new, strict=True))
    return not whole and old[0] >= new[0] and old[1] >= new[1]


def shrink(
    pixels: Frames, new: tuple[int, int], top: int, left: int, size: tuple[int, int]
) -> Frames:
    """Scale a frame (H, W, 3) to `new` (height, width) and return the crop of `size` at (top, left)."""
    (old_height, old_width, _), (height, width) = pixels.shape, size
    rows = _weights(old_height, new[0], top, top + height)
    columns = _weights(old_width, new[1], left, left + width)
    source = _buffer("source", (old_height, old_width * 3))
    np.copyto(source, pixels.reshape(old_height, -1))
    low = _buffer("low", (height, old_width * 3))
    _add_rows(rows, source, low)
    # The second pass adds whole rows too, so it works on the transposed frame.
    transposed = _buffer("transposed", (old_width, height * 3))
    cv2.transpose(low.reshape(height, old_width, 3), transposed.reshape(old_width, height, 3))
    small = _buffer("small", (width, height * 3))
    _add_rows(columns, transposed, small)
    levels = np.rint(small, out=small).astype(np.uint8).reshape(width, height, 3)
    return cv2.transpose(levels).astype(np.uint8, copy=False)


def _add_rows(weights: Weights, rows: Rows, out: Rows) -> None:
    """Write the product weights (new, old) @ rows (old, N) into `out` (new, N)."""
    starts, columns, values = weights
    out.fill(0)  # csr_matvecs adds to what is there
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
    """Weights of the old pixels in each new pixel from `start` to `stop`: the share of its length that each covers."""
    scale = old / new
    starts, columns, values = [0], [], []
    for index in range(start, stop):
        # The new pixel covers [first, last) of the old axis.
        first, last = index * scale, min((index + 1) * scale, old)
        covered = range(int(first), min(int(np.ceil(last)), old))
        shares = [min(last, j + 1) - max(first, j) for j in covered]
        # Slivers of up to 1e-3 pixels are dropped, as OpenCV does.
        kept = [(j, s / (last - first)) for j, s in zip(covered, shares, strict=True) if s > 1e-3]
        columns += [j for j, _ in kept]
        values += [share for _, share in kept]
        starts.append(len(columns))
    return np.array(starts, np.int32), np.array(columns, np.int32), np.array(values, np.float32)


def _buffer(name: str, shape: tuple[int, int]) -> Rows:
    """A buffer of this thread, reused while its shape stays the same."""
    kept: Rows | None = getattr(_buffers, name, None)
    if kept is None or kept.shape != shape:
        kept = np.empty(shape, np.float32)
        setattr(_buffers, name, kept)
    return kept
