"""Writes clips as files, and arranges them side by side in one video or their frames in one picture."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from arvid.files import atomic_write

LEGIBLE = 96
"""Frames with fewer pixel rows are enlarged by an integer factor, up to about this size."""


GAP = 4
"""White pixels between the parts of a sheet."""
LINE = 20
"""Height of a line of text in pixels."""


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
    index = shown_frames(videos.shape[1], num_frames)
    frames = videos[:, index].repeat(scale, axis=2).repeat(scale, axis=3)
    padded = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    sheet = rearrange(padded, "b t h w c -> (b h) (t w) c")
    return sheet[: sheet.shape[0] - gap, : sheet.shape[1] - gap]


def shown_frames(total: int, num_frames: int) -> list[int]:
    """Indices of at most `num_frames` evenly spaced frames, from the first to the last."""
    return [round(x) for x in np.linspace(0, total - 1, min(num_frames, total)).tolist()]


def write_sheet(
    path: Path,
    videos: UInt8[np.ndarray, "clip row t h w 3"],
    *,
    rows: Sequence[str] = (),
    prompts: Sequence[str] = (),
    columns: Sequence[str] = (),
    num_frames: int = 9,
) -> None:
    """Write a PNG: for each clip its prompt, and below it a line of frames for each row.

    Args:
        path: the file.
        videos: clips of the rows.
        rows: names of the rows, to the left of their frames; none by default.
        prompts: captions of the clips, above them; none by default.
        columns: headings of the columns; by default the numbers of the frames.
        num_frames: largest number of frames of a clip that are shown.
    """
    total, height, width = videos.shape[2:5]
    scale = max(LEGIBLE // height, 1)
    index = shown_frames(total, num_frames)
    headings = columns or [f"frame {i}" if k == 0 else str(i) for k, i in enumerate(index)]
    left = max((_text_width(name) for name in rows), default=-GAP) + GAP
    parts = [_headings(headings, left, width * scale + GAP)]
    for i, clip in enumerate(videos):
        if prompts:
            parts.append(_line(prompts[i], left + len(index) * (width * scale + GAP)))
        frames = contact_sheet(clip, num_frames=num_frames, gap=GAP, scale=scale)
        names = Image.new("RGB", (left, frames.shape[0]), "white")
        for k, name in enumerate(rows):
            middle = k * (height * scale + GAP) + height * scale // 2
            _draw(names, (0, middle), name, anchor="lm")
        gap = GAP if prompts or videos.shape[1] == 1 else LINE  # a prompt separates clips
        parts += [np.concatenate([np.asarray(names), frames], axis=1), _blank(gap)]
    write_png(path, _stacked(parts[:-1]))


def write_clips(
    folder: Path, videos: UInt8[np.ndarray, "b t h w 3"], fps: float, *, start: int = 0
) -> None:
    """Write each clip as NUMBER.mp4, or as NUMBER.png if it is a single frame. Numbers begin at `start`."""
    # Imports torch, which commands that only write pictures do not need.
    from arvid.data.video import write_video

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


def _headings(names: Sequence[str], left: int, step: int) -> UInt8[np.ndarray, "h w 3"]:
    texts = [_wrapped(name, step - GAP) for name in names]
    height = max((text.count("\n") + 1 for text in texts), default=1) * LINE
    image = Image.new("RGB", (left + len(names) * step, height), "white")
    for k, text in enumerate(texts):
        _draw(image, (left + k * step, height - GAP), text, anchor="ld")
    return np.asarray(image)


def _line(text: str, width: int) -> UInt8[np.ndarray, "h w 3"]:
    image = Image.new("RGB", (width, LINE + GAP), "white")
    _draw(image, (0, GAP + LINE // 2), _fitting(text, width), anchor="lm", colour="black")
    return np.asarray(image)


def _blank(height: int) -> UInt8[np.ndarray, "h w 3"]:
    return np.full((height, 1, 3), 255, np.uint8)


def _stacked(parts: Sequence[np.ndarray]) -> UInt8[np.ndarray, "h w 3"]:
    width = max(part.shape[1] for part in parts)
    pad = [((0, 0), (0, width - part.shape[1]), (0, 0)) for part in parts]
    pairs = zip(parts, pad, strict=True)
    return np.concatenate([np.pad(part, p, constant_values=255) for part, p in pairs])


def _draw(
    image: Image.Image, place: tuple[int, int], text: str, *, anchor: str, colour: str = "#5d6973"
) -> None:
    ImageDraw.Draw(image).text(place, text, fill=colour, font=_font(), anchor=anchor)


def _fitting(text: str, width: int) -> str:
    """The text, cut at its end if it is wider than `width` pixels."""
    if _text_width(text) <= width:
        return text
    while text and _text_width(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _wrapped(text: str, width: int) -> str:
    """The text in lines of at most `width` pixels. A longer word is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _text_width(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(_fitting(line, width) for line in lines)


def _text_width(text: str) -> int:
    return round(_font().getlength(text))


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, so that pictures are equal everywhere."""
    import matplotlib  # slow to import

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 13)
