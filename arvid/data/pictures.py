"""Videos made of pictures: folders of frames, and animated WebP files, which PyAV does not read."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from arvid.data._layout import Layout, runs_of
from arvid.data.video import Frames, Probe, VideoError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of the pictures in a folder of frames."""
_AS_IT_IS = cv2.IMREAD_UNCHANGED

DEFAULT_FPS = 25.0
"""Frame rate of folders of frames and of single pictures, which state none."""


def is_pictures(path: Path) -> bool:
    """Whether this module reads a path: a folder, or a .webp file."""
    return path.suffix.lower() == ".webp" or os.path.isdir(path)


def states_rate(path: Path) -> bool:
    """Whether a video states its rate. A folder of frames does not."""
    return not os.path.isdir(path)


def probe_pictures(path: Path) -> Probe:
    """Probe a video of pictures. In a folder only the first picture is read. Raises VideoError."""
    if os.path.isdir(path):
        files = frame_files(path)
        height, width, _ = _read(path, files[0], cv2.IMREAD_COLOR).shape
        return Probe(len(files), DEFAULT_FPS, height, width)
    frames, milliseconds = _read_webp(path)
    # A frame starts where the durations before it end.
    stamps = np.cumsum([0, *milliseconds[:-1]]).tolist()
    layout = Layout(tick=0.001, span=(0, stamps[-1]), runs=runs_of(stamps) if stamps[-1] else ())
    height, width = frames[0].shape[:2]
    return Probe(len(frames), _mean_rate(stamps), height, width, layout=layout)


def read_pictures(path: Path, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
    """The frames at ascending indices (repeats allowed): uint8 (len(indices), H, W, 3), RGB.

    Raises VideoError for a frame that is unreadable or missing, and for frames of several sizes.
    """
    wanted = sorted({int(index) for index in indices})
    if os.path.isdir(path):
        files = frame_files(path)
        _require(path, len(files), wanted[-1])
        found = {i: _read(path, files[i], cv2.IMREAD_COLOR) for i in wanted}
    else:
        frames, _ = _read_webp(path)
        _require(path, len(frames), wanted[-1])
        found = {i: frames[i][..., :3] for i in wanted}
    sizes = {frame.shape for frame in found.values()}
    if len(sizes) > 1:
        some = " and ".join(f"{height}x{width}" for height, width, _ in sorted(sizes)[:2])
        raise VideoError(path, f"its frames have several sizes, e.g. {some}")
    return np.stack([cv2.cvtColor(found[int(i)], cv2.COLOR_BGR2RGB) for i in indices])


def has_alpha(path: Path) -> bool:
    """Whether the first frame has transparent pixels. Raises VideoError."""
    is_folder = os.path.isdir(path)
    first = _read(path, frame_files(path)[0], _AS_IT_IS) if is_folder else _read_webp(path)[0][0]
    opaque = np.iinfo(first.dtype).max  # a PNG may have 16 bits
    return first.ndim == 3 and first.shape[2] == 4 and bool((first[..., 3] < opaque).any())


def frame_files(folder: Path) -> list[Path]:
    """The pictures in a folder, sorted by name with numbers by value. Raises VideoError if there are none."""
    found = [
        Path(entry.path)
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(ENDINGS) and not entry.name.startswith(".")
    ]
    if not found:
        raise VideoError(folder, "it is a folder without pictures", "Give the path of a video.")
    return sorted(found, key=lambda path: natural_key(path.name))


def natural_key(name: str) -> list[Any]:
    """Sort key that puts frame2 before frame10."""
    parts = re.split(r"(\d+)", name)  # text and numbers alternate; numbers have odd positions
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _read(folder: Path, file: Path, mode: int) -> Frames:
    """Pixels of a picture, uint8 (H, W, channels) in BGR order."""
    try:
        pixels = cv2.imdecode(np.fromfile(file, np.uint8), mode)
    except (OSError, cv2.error):
        pixels = None
    if pixels is None:
        raise VideoError(folder, f"its frame {file.name} is no picture")
    return cast("Frames", pixels)


def _mean_rate(stamps: Sequence[int]) -> float:
    """Frames per second of frames that are shown at these milliseconds."""
    return (len(stamps) - 1) / (stamps[-1] / 1000) if stamps[-1] else DEFAULT_FPS


def _read_webp(path: Path) -> tuple[list[Frames], list[int]]:
    """Frames (H, W, 4) in BGRA order, and the duration of each in milliseconds."""
    if not os.path.isfile(path):
        raise VideoError(path, "there is no such file", "Check the path.")
    is_read, animation = cv2.imreadanimation(os.fspath(path))
    if not is_read or not len(animation.frames):
        raise VideoError(path, "it is no WebP picture")
    durations = np.ravel(animation.durations).astype(int).tolist()
    return cast("list[Frames]", list(animation.frames)), durations


def _require(path: Path, num_frames: int, last: int) -> None:
    if last >= num_frames:
        raise VideoError(path, f"it ends after {num_frames} frames, before frame {last}")
