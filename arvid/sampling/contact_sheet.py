"""Writes clips as files, and arranges them side by side in one video or their frames in one picture."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from einops import rearrange
from jaxtyping import UInt8

from arvid.files import atomic_write

LEGIBLE = 96
"""Frames with fewer pixel rows are enlarged by an integer factor, up to about this size."""


def side_by_side(
    videos: UInt8[np.ndarray, "b t h w 3"], gap: int = 2
) -> UInt8[np.ndarray, "t h bw 3"]:
    """The clips in a row, with white gaps between them."""
    padded = np.pad(videos, ((0, 0), (0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    row = rearrange(padded, "b t h w c -> t h (b w) c")
    return row[:, :, : row.shape[2] - gap]


def contact_sheet(
    videos: UInt8[np.ndarray, "b t h w 3"], *, num_frames: int = 9, gap: int = 2, scale: int = 1
) -> UInt8[np.ndarray, "h w 3"]:
    """One row per clip with evenly spaced frames from first to last, enlarged `scale` times."""
    index = np.linspace(0, videos.shape[1] - 1, min(num_frames, videos.shape[1])).round()
    frames = videos[:, index.astype(int)].repeat(scale, axis=2).repeat(scale, axis=3)
    padded = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    sheet = rearrange(padded, "b t h w c -> (b h) (t w) c")
    return sheet[: sheet.shape[0] - gap, : sheet.shape[1] - gap]


def write_sheet(
    path: Path, videos: UInt8[np.ndarray, "*n t h w 3"], *, num_frames: int = 9
) -> None:
    """Write a PNG with one row of frames per clip, in the order of the clips."""
    clips = videos.reshape(-1, *videos.shape[-4:])
    write_png(
        path, contact_sheet(clips, num_frames=num_frames, scale=max(LEGIBLE // clips.shape[2], 1))
    )


def write_clips(
    folder: Path, videos: UInt8[np.ndarray, "b t h w 3"], fps: float, *, start: int = 0
) -> None:
    """Write each clip as NUMBER.mp4, or as NUMBER.png if it is a single frame. Numbers begin at `start`."""
    from arvid.data.video import (
        write_video,
    )  # imports torch, which commands that write pictures do without

    for i, video in enumerate(videos, start):
        if len(video) == 1:
            write_png(folder / f"{i:03d}.png", video[0])
        else:
            write_video(folder / f"{i:03d}.mp4", video, fps)


def write_png(path: Path, picture: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write an RGB picture as a PNG file, atomically. Raises as `arvid.files.atomic_write` does."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode_png(picture))


def encode_png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """An RGB picture as the bytes of a PNG file."""
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done, "PNG encoding takes any uint8 picture"
    return data.tobytes()
