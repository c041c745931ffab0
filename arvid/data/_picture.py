"""From a decoded frame to pixels as they are meant to be seen: right way up, not mirrored, with square pixels.

A file states two things beside the stored pixels (H, W): a display matrix, which turns and mirrors them, and the shape
of a pixel (sample aspect ratio, width : height). Pixels that are not square are brought to square ones by changing the
width, as ffmpeg's `scale=iw*sar:ih` does. A frame that gets another size anyway is resampled once.
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
"""Pixels whose sides differ by less count as square: nobody sees it, and the stored pixels stay as they are."""


def _unknown_type(cls: type[Enum], value: object) -> Enum:
    member = object.__new__(cls)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member


# PyAV 18 cannot list the side data of a frame if one kind of it is newer than PyAV (31 is EXIF, of photos).
sidedata.Type._missing_ = classmethod(_unknown_type)  # type: ignore[assignment]


class Orientation(NamedTuple):
    """What sets stored pixels (H, W) right: rows and columns are exchanged first, then reversed."""

    transposed: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, pixels: Frames) -> Frames:
        """Turn and mirror pixels (H, W, 3)."""
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        rows, columns = (-1 if flip else 1 for flip in (self.flip_rows, self.flip_columns))
        return pixels[::rows, ::columns]

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of pixels of a stored size."""
        return (width, height) if self.transposed else (height, width)


AS_STORED = Orientation()


def orientation_of(frame: av.VideoFrame) -> Orientation | None:
    """The orientation that a frame states, to the nearest quarter turn; None if it states none.

    A display matrix (a b u, c d v, x y w) moves column p and row q to a·p + c·q and b·p + d·q.
    """
    stated: Any = frame.side_data.get(sidedata.Type.DISPLAYMATRIX)  # type: ignore[call-overload]
    if stated is None:
        return None
    a, b, _, c, d = (int(n) for n in np.frombuffer(bytes(stated), np.int32)[:5])
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    columns, rows = (c, b) if transposed else (a, d)
    return Orientation(transposed, rows < 0, columns < 0)


def stretch_of(pixel_shape: Fraction | None) -> float:
    """What the width is multiplied with to make pixels of a shape square; 1 if they are, or it is unknown."""
    shape = float(pixel_shape or 1)
    return shape if shape > 0 and abs(shape - 1) >= SQUARE_TOLERANCE else 1.0


class Painter:
    """Makes pixels uint8 (H, W, 3) of the frames of one file, one at a time.

    Args:
        size: height and width that frames are brought to, as `mode` says. None: as they are meant to be seen.
    """

    def __init__(self, size: tuple[int, int] | None = None, mode: Resize = "crop") -> None:
        self.size = size
        self.mode = mode
        self._to_rgb = VideoReformatter()  # kept: a new one for each frame costs more than its work

    def __call__(self, frame: av.VideoFrame, shown: tuple[int, int], turn: Orientation) -> Frames:
        """Pixels of a frame whose height and width are meant to be `shown`."""
        rgb = self._to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray()
        pixels = turn.apply(cast(Frames, rgb))
        if self.size is None and pixels.shape[:2] == shown:
            return np.ascontiguousarray(pixels)
        mode: Resize = self.mode if self.size else "squash"
        return fit_frame(np.ascontiguousarray(pixels), self.size or shown, mode, shown)
