"""Read and write video files. A video is uint8 (T, H, W, 3) in RGB, as displayed.

Frames are in the decoder's order, never sorted by timestamp: in UCF-101's AVI files (packed B-frames) the timestamps
are out of order, but the frames are not. Frame counts in headers are not trusted. Rotation and mirroring are undone,
and pixels are made square. If the size changes within a file, all frames get the size of the first one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from arvid.contracts import UserError
from arvid.data._decoding import MAX_PIXELS, Reader, VideoError
from arvid.data._layout import Layout, Probe
from arvid.data._picture import Painter
from arvid.data._probing import probe_video
from arvid.data.clips import Frames, Resize
from arvid.files import atomic_write
from arvid.ranges import FPS, at_least

REPRODUCIBLE = "mbtree=0:threads=1"
"""x264 options that make the file depend on the frames alone. The macroblock tree reads uninitialised memory for small
videos, and the number of threads, which depends on the machine, changes the file."""

__all__ = [
    "MAX_PIXELS",
    "Frames",
    "Probe",
    "Video",
    "VideoError",
    "iter_frames",
    "probe_video",
    "read_frames",
    "read_video",
    "write_frames",
    "write_video",
]


@dataclass(frozen=True)
class Video:
    """Decoded frames uint8 (T, H, W, 3), RGB, upright, and their mean rate in frames per second."""

    frames: Frames
    fps: float


def read_video(
    path: str | Path,
    *,
    max_frames: int | None = None,
    size: tuple[int, int] | None = None,
    resize: Resize = "crop",
    max_pixels: int = MAX_PIXELS,
) -> Video:
    """Read a video, or its first `max_frames` frames.

    A truncated file has the frames before its end. Raises VideoError if the file cannot be read, or is corrupt before
    the last requested frame.

    Args:
        path: the file.
        max_frames: frames to read; all by default.
        size: height and width to resize to while decoding, so that memory holds no larger frames.
        resize: how to resize (see ClipSpec).
        max_pixels: frames with more pixels are refused.
    """
    at_least(1).require(max_frames=max_frames)
    paint = Painter(size, resize)
    with Reader(path, max_pixels=max_pixels) as reader:
        decoded = islice(reader.decode(), max_frames)
        frames = [reader.painted(paint, frame) for frame in decoded]
        return Video(np.stack(frames), reader.fps())


def iter_frames(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Iterator[Frames]:
    """Yield the frames (H, W, 3), one in memory at a time. Raises as `read_video`."""
    paint = Painter()
    with Reader(path, max_pixels=max_pixels) as reader:
        for frame in reader.decode():
            yield reader.painted(paint, frame)


def read_frames(
    path: str | Path,
    indices: Sequence[int] | NDArray[np.int64],
    *,
    probe: Probe | None = None,
    size: tuple[int, int] | None = None,
    resize: Resize = "crop",
    max_pixels: int = MAX_PIXELS,
) -> Frames:
    """Read the frames at ascending indices (repeats allowed): (len(indices), H, W, 3).

    Only these frames are converted to RGB. Raises VideoError as `read_video`, and if the video has fewer frames.

    Args:
        path: the file.
        indices: frames, counted from 0.
        probe: result of `probe_video`. With it, decoding begins at the last key frame before the first index, and a
            frame that is damaged or off its time is an error. Without it, decoding begins at the start of the file.
        size, resize, max_pixels: as in `read_video`.
    """
    wanted = [int(index) for index in indices]
    if not wanted or wanted != sorted(wanted) or wanted[0] < 0:
        raise ValueError(f"indices must be ascending, not negative and at least one, got {wanted}")
    chosen = set(wanted)
    paint = Painter(size, resize)
    frames = {}
    with Reader(path, max_pixels=max_pixels) as reader:
        start = reader.seek(probe.layout if probe else Layout(), wanted[0])
        decoded = enumerate(islice(reader.decode(), wanted[-1] + 1 - start), start)
        # After a seek the reader does not know the size of the file's first frame.
        whole = (probe.height, probe.width) if probe and start else None
        for index, frame in decoded:
            if index in chosen:
                if probe:
                    _require_sound(path, frame, index, probe)
                frames[index] = reader.painted(paint, frame, whole)
        if wanted[-1] not in frames:
            raise VideoError(
                path, f"it ends after {reader.num_frames} frames, before frame {wanted[-1]}"
            )
    return np.stack([frames[index] for index in wanted])


def _require_sound(path: str | Path, frame: av.VideoFrame, index: int, probe: Probe) -> None:
    """Raise VideoError for a frame that was decoded from damaged data, or with missing frames before it."""
    # The last frame is exempt: a truncated file may end with a damaged frame.
    if frame.is_corrupt and index < probe.num_frames - 1:
        raise VideoError(path, f"its frame {index} is damaged")
    if not probe.layout.in_order or frame.pts is None:
        return
    late = frame.pts * probe.layout.tick - probe.time_of(index)
    if abs(late) * probe.fps >= _LATE:
        raise VideoError(path, f"frames are missing before its frame {index}")


_LATE = 1.0
"""Limit of a frame's time error, in mean frame durations. Half of one is usual at a nearly constant rate."""


def write_video(path: str | Path, frames: Frames, fps: float, *, crf: int = 18) -> None:
    """Write frames uint8 (T, H, W, 3) atomically as an H.264 mp4 that browsers play.

    Colours are tagged (BT.709), the index is at the start, and chroma has half the size (yuv420p). That needs an even
    size: of an odd one the last column or row is repeated, so a video of 31×31 reads back as 32×32.

    Args:
        path: file ending in .mp4; its folder is made.
        frames: at least one frame.
        fps: frames per second.
        crf: quality from 0 (best) to 51; 18 looks like the original.

    Raises:
        ValueError: wrong type, shape or frame rate, or another ending.
        UserError: the file cannot be written (a full disk, no permission).
    """
    if not isinstance(frames, np.ndarray):
        raise ValueError(f"frames must be a numpy array of uint8, got {type(frames).__name__}")
    if frames.ndim != 4 or 0 in frames.shape:
        raise ValueError(f"frames must be (T, H, W, 3), none of them 0, got {frames.shape}")
    write_frames(path, frames, fps, crf=crf)


def write_frames(path: str | Path, frames: Iterable[Frames], fps: float, *, crf: int = 18) -> None:
    """`write_video` for an iterable of frames uint8 (H, W, 3), one in memory at a time.

    The file appears after the last frame. An error while frames are made leaves no file.
    """
    if Path(path).suffix.lower() != ".mp4":
        raise ValueError(f"write_video writes .mp4 files, got {path}")
    FPS.require(fps=fps)
    try:
        with atomic_write(path) as temporary:
            _encode(temporary, frames, fps, crf)
    except (OSError, av.error.FFmpegError) as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error


def _check_frame(pixels: Frames) -> None:
    if pixels.dtype != np.uint8:
        raise ValueError(f"frames must be a numpy array of uint8, got {pixels.dtype}")
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise ValueError(f"frames must be (T, H, W, 3), none of them 0, got {pixels.shape} each")


def _encode(path: Path, frames: Iterable[Frames], fps: float, crf: int) -> None:
    """Encode RGB frames (H, W, 3) into `path`."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # The rate must be a fraction; a denominator of 1001 allows 30000/1001 (29.97).
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "x264-params": REPRODUCIBLE}
        _tag_colours(stream.codec_context)
        for index, pixels in enumerate(frames):
            _check_frame(pixels)
            height, width, _ = pixels.shape
            even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if not index:
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(_to_yuv(even)))
        container.mux(stream.encode(None))


def _tag_colours(context: Any) -> None:
    """Tag the colours as BT.709 with limited range. Without a tag, players guess from the size, and disagree."""
    # 1 is BT.709 in all three lists of constants.
    context.colorspace = context.color_primaries = context.color_trc = 1
    context.color_range = ColorRange.MPEG


def _to_yuv(pixels: Frames) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )
