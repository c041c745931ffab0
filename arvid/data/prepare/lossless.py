"""Lossless videos, for datasets that are published as arrays and scored on exact pixels."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import av.error

from arvid.data.video import REPRODUCIBLE, Frames
from arvid.errors import UserError
from arvid.files import atomic_write


def write_lossless(path: Path, frames: Frames, fps: float) -> None:
    """Write frames uint8 (T, H, W, 3) atomically as lossless H.264 of RGB (.mp4). Most browsers do not play it.

    Raises UserError if the file cannot be written.
    """
    try:
        with (
            atomic_write(path) as temporary,
            av.open(str(temporary), "w", format="mp4") as container,
        ):
            stream = container.add_stream("libx264rgb", rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "rgb24"
            stream.options = {"qp": "0", "preset": "veryfast", "x264-params": REPRODUCIBLE}
            for pixels in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
    except (OSError, av.error.FFmpegError) as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
