"""Convert a decoded frame to pixels as displayed: upright, not mirrored, with square pixels.

Beside the stored pixels (H, W) a file states a display matrix, which rotates and mirrors them, and the shape of a pixel
(sample aspect ratio, width : height). Pixels become square by a change of the width, as in ffmpeg's
`scale=iw*sar:ih`. If the frame is resized anyway, both steps are one resampling.
"""

from __future__ import annotations

from enum import Enum
from fractions import Fraction
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.sidedata import sidedata
from av.video.reformatter import VideoReformatter

from arvid.data.clips import Frames, Resize, fit_frame

SQUARE_TOLERANCE = 0.005
"""Pixels with an aspect ratio this close to 1 count as square, and are not resampled."""


def _unknown_type(cls: type[Enum], value: object) -> Enum:
    member = object.__new__(cls)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member


# PyAV 18 fails to list a frame's side data if it does not know one type (31 is EXIF, of photos).
sidedata.Type._missing_ = classmethod(_unknown_type)  # type: ignore[assignment]


class Orientation(NamedTuple):
    """How to turn stored pixels (H, W) upright: first transpose, then reverse rows and columns."""

    transposed: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, pixels: Frames) -> Frames:
        """Rotate and mirror pixels (H, W, 3)."""
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        rows, columns = (-1 if flip else 1 for flip in (self.flip_rows, self.flip_columns))
        return pixels[::rows, ::columns]

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Upright height and width of a stored size."""
        return (width, height) if self.transposed else (height, width)


AS_STORED = Orientation()


def orientation_of(frame: av.VideoFrame) -> Orientation | None:
    """The orientation that a frame states, to the nearest quarter turn. None if it states none.

    A display matrix (a b u, c d v, x y w) maps column p and row q to column a·p + c·q and row b·p + d·q.
    """
    stated: Any = frame.side_data.get(sidedata.Type.DISPLAYMATRIX)  # type: ignore[call-overload]
    if stated is None:
        return None
    a, b, _, c, d = (int(n) for n in np.frombuffer(bytes(stated), np.int32)[:5])
    # A quarter turn exchanges the axes: b and c are then larger than a and d.
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    columns, rows = (c, b) if transposed else (a, d)
    return Orientation(transposed, rows < 0, columns < 0)


def stretch_of(pixel_shape: Fraction | None) -> float:
    """Factor for the width that makes pixels square; 1 if they are square or their shape is unknown."""
    shape = float(pixel_shape or 1)
    return shape if shape > 0 and abs(shape - 1) >= SQUARE_TOLERANCE else 1.0


class Painter:
    """Converts the frames of one file to pixels uint8 (H, W, 3), one at a time.

    Args:
        size: height and width to resize to. None: the size as displayed.
        mode: how to resize (see ClipSpec).
    """

    def __init__(self, size: tuple[int, int] | None = None, mode: Resize = "crop") -> None:
        self.size = size
        self.mode = mode
        # Kept, because making one costs more than converting a frame.
        self._to_rgb = VideoReformatter()

    def __call__(self, frame: av.VideoFrame, shown: tuple[int, int], turn: Orientation) -> Frames:
        """Pixels of a frame that is displayed at height and width `shown`."""
        rgb = self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
        pixels = turn.apply(cast(Frames, rgb))
        if self.size is None and pixels.shape[:2] == shown:
            return np.ascontiguousarray(pixels)
        mode: Resize = self.mode if self.size else "squash"
        return fit_frame(np.ascontiguousarray(pixels), self.size or shown, mode, shown)
