"""First frames for a continuation, from a video or image."""

from __future__ import annotations

from pathlib import Path

from arvid.contracts import UserError
from arvid.data.clips import Frames, resize_frames
from arvid.data.video import read_video


def read_first_frames(path: Path, num_frames: int, *, size: tuple[int, int]) -> Frames:
    """The first frames of a video or image, at `size` (height and width): uint8 (num_frames, height, width, 3).

    Frames of another size are resized and centre-cropped, with a message. Raises UserError if there are fewer frames,
    and as `read_video` does.
    """
    video = read_video(path, max_frames=num_frames)
    if len(video.frames) < num_frames:
        raise UserError(
            f"{path} has {len(video.frames)} frames, fewer than the {num_frames} first frames asked for."
        )
    height, width = video.frames.shape[1:3]
    if (height, width) != size:
        print(f"{path} is resized from {width}x{height} and centre-cropped to {size[1]}x{size[0]}.")
    return resize_frames(video.frames, size)
