"""Clips as an array that a notebook shows as videos."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from arvid.data.video import write_video
from arvid.ranges import FILE_FPS
from arvid.sampling.contact_sheet import LEGIBLE, encode_png, write_clips, write_sheet

MAX_SHOWN = 16
"""Maximum number of clips that a notebook shows."""


@dataclass(frozen=True, eq=False)
class Clips:
    """Clips uint8 (B, T, H, W, 3), RGB. `numpy.asarray(clips)` gives the array; a notebook shows the videos."""

    array: NDArray[np.uint8]
    captions: Sequence[str] = ()
    """One per clip, or none."""
    fps: float = FILE_FPS
    """Frames per second of files and of the videos in a notebook."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Clips, frames, height, width, 3."""
        return self.array.shape

    def save(self, folder: str | Path) -> list[Path]:
        """Write one mp4 per clip (png for a single frame) and a contact sheet, sheet.png; returns the clips' paths."""
        folder = Path(folder)
        write_clips(folder, self.array, self.fps)
        write_sheet(folder / "sheet.png", self.array[:, None], prompts=self.captions)
        suffix = "png" if self.shape[1] == 1 else "mp4"
        return [folder / f"{i:03d}.{suffix}" for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return iter(self.array)

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        return self.array[index]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.array, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        num, frames, height, width = self.shape[:4]
        return f"Clips({num} of {frames} frames, {width}x{height}, {self.fps:g} frames per second)"

    def _repr_html_(self) -> str:
        """The clips as videos with their captions; single frames as pictures."""
        shown = "".join(self._figure(i) for i in range(min(len(self), MAX_SHOWN)))
        left_out = max(len(self) - MAX_SHOWN, 0)
        more = f"<p>and {left_out} more</p>" if left_out else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{shown}</div>{more}'

    def _figure(self, index: int) -> str:
        clip = self.array[index]
        width = clip.shape[2] * max(LEGIBLE // clip.shape[1], 1)
        look = f'width="{width}" style="image-rendering:pixelated"'
        if len(clip) == 1:
            shown = f'<img {look} src="{_data_uri("image/png", encode_png(clip[0]))}">'
        else:
            source = _data_uri("video/mp4", _encode(clip, self.fps))
            shown = f'<video {look} src="{source}" autoplay loop muted playsinline></video>'
        caption = html.escape(self.captions[index]) if self.captions else ""
        return (
            f'<figure style="margin:0;width:{max(width, 120)}px">{shown}'
            f"<figcaption>{caption}</figcaption></figure>"
        )


def _encode(clip: NDArray[np.uint8], fps: float) -> bytes:
    """A clip as the bytes of an mp4 file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, clip, fps)
        return path.read_bytes()


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
