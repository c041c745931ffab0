"""Reading and writing video files. A video is uint8 (T, H, W, 3) in RGB, as it is meant to be seen.

Frames come in the order in which the decoder gives them, never sorted by timestamp: the packed B-frames of
UCF-101's AVI files bear timestamps that are out of order while the frames are not. Nothing that a header says
about the number of frames is believed. Display rotation is applied.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from arvid.contracts import UserError
from arvid.files import atomic_write
from arvid.ranges import FPS, at_least

Frames = NDArray[np.uint8]

FPS_TOLERANCE = 0.01
"""Timestamps that agree with the header's frame rate this well are taken to mean the header's."""

REPRODUCIBLE = "mbtree=0:threads=1"
"""Same frames, same file: x264's macroblock tree reads memory that was never written where videos are small, and the
number of its threads, which follows from the machine, changes the file."""


class VideoError(UserError):
    """A video file that cannot be read: names the file, the reason and what to do."""

    def __init__(self, path: str | Path, reason: str, advice: str = "") -> None:
        self.path = Path(path)
        self.reason = reason
        self.advice = advice or "Fetch the file again, or leave it out."
        super().__init__(f"{self.path} cannot be read as a video: {reason}. {self.advice}")

    def __reduce__(self) -> tuple[type[VideoError], tuple[Path, str, str]]:
        # Data workers send their errors pickled; the default would call __init__ with the message alone.
        return type(self), (self.path, self.reason, self.advice)


@dataclass(frozen=True)
class Video:
    """Decoded frames uint8 (T, H, W, 3), RGB, upright, and their mean rate in frames per second."""

    frames: Frames
    fps: float


@dataclass(frozen=True)
class Probe:
    """What decoding a whole file shows: frames that come out, mean frame rate, upright size in pixels."""

    num_frames: int
    fps: float
    height: int
    width: int


def read_video(path: str | Path, *, max_frames: int | None = None) -> Video:
    """Read a video, or its first `max_frames` frames.

    A file whose end is missing gives the frames before it. Raises VideoError if the file cannot be read, or is
    corrupt before the last frame that is asked for.
    """
    at_least(1).require(max_frames=max_frames)
    with _Reader(path) as reader:
        frames = [_to_rgb(frame) for frame in islice(reader.decode(), max_frames)]
        return Video(np.stack(frames), reader.fps())


def iter_frames(path: str | Path) -> Iterator[Frames]:
    """Yield the frames (H, W, 3) one after the other, holding one at a time. Raises as `read_video`."""
    with _Reader(path) as reader:
        for frame in reader.decode():
            yield _to_rgb(frame)


def read_frames(path: str | Path, indices: Sequence[int] | NDArray[np.int64]) -> Frames:
    """Read the frames at ascending indices (repeats allowed): (len(indices), H, W, 3).

    Decoding stops at the last one, and only these are converted to RGB. Raises VideoError as `read_video`, and if
    the video has fewer frames.
    """
    wanted = [int(index) for index in indices]
    if not wanted or wanted != sorted(wanted) or wanted[0] < 0:
        raise ValueError(f"indices must be ascending, not negative and at least one, got {wanted}")
    chosen = set(wanted)
    with _Reader(path) as reader:
        decoded = enumerate(islice(reader.decode(), wanted[-1] + 1))
        frames = {index: _to_rgb(frame) for index, frame in decoded if index in chosen}
        if wanted[-1] not in frames:
            raise VideoError(
                path, f"it ends after {reader.num_frames} frames, before frame {wanted[-1]}"
            )
    return np.stack([frames[index] for index in wanted])


def probe_video(path: str | Path) -> Probe:
    """Decode a whole file without keeping a frame (some ten thousand small ones a second). Raises VideoError."""
    with _Reader(path) as reader:
        for _ in reader.decode():
            pass
        height, width = reader.size
        return Probe(reader.num_frames, reader.fps(), height, width)


class _Reader:
    """One pass over the video stream of a file; errors of the library become VideoErrors."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.num_frames = 0
        self.size = (0, 0)
        self._first_time, self._last_time = float("inf"), float("-inf")

    def __enter__(self) -> _Reader:
        self._container = _open(self.path)
        if not self._container.streams.video:
            self._container.close()
            raise VideoError(self.path, "it holds no video stream")
        self._stream = self._container.streams.video[0]
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def decode(self) -> Iterator[av.VideoFrame]:
        """Yield the frames in decoding order. Raises VideoError on corruption, and if there is no frame."""
        try:
            for frame in self._container.decode(self._stream):
                self._note(frame)
                yield frame
        except av.error.FFmpegError as error:
            where = f"after {self.num_frames} frames" if self.num_frames else "at its first frame"
            raise VideoError(self.path, f"decoding fails {where} ({_reason(error)})") from error
        if not self.num_frames:
            raise VideoError(self.path, "no frame of it can be decoded")

    def fps(self) -> float:
        """Mean frame rate over the frames decoded so far, by their timestamps where they have any.

        Only the first and the last time count, so it does not matter that they come out of order. A rate that the
        header confirms is given as the header says: it is the exact one. Where the file says nothing, 25.
        """
        header = float(self._stream.average_rate or self._stream.guessed_rate or 25)
        span = self._last_time - self._first_time
        if self.num_frames < 2 or not 0 < span < float("inf"):
            return header
        measured = (self.num_frames - 1) / span
        return header if abs(measured / header - 1) < FPS_TOLERANCE else measured

    def _note(self, frame: av.VideoFrame) -> None:
        quarter_turns = _quarter_turns(frame)
        size = (
            (frame.height, frame.width) if quarter_turns % 2 == 0 else (frame.width, frame.height)
        )
        if self.num_frames and size != self.size:
            before, after = (f"{height}x{width}" for height, width in (self.size, size))
            reason = (
                f"the frame size changes from {before} to {after} after frame {self.num_frames}"
            )
            raise VideoError(self.path, reason)
        self.size = size
        self.num_frames += 1
        if frame.time is not None:
            self._first_time = min(self._first_time, frame.time)
            self._last_time = max(self._last_time, frame.time)


def _open(path: Path) -> av.container.InputContainer:
    if not os.path.exists(path):  # False for names that are too long, too
        raise VideoError(path, "there is no such file", "Check the path.")
    if path.is_dir():
        raise VideoError(path, "it is a folder", "Give the path of one video file.")
    if path.stat().st_size == 0:
        raise VideoError(path, "the file is empty (0 bytes)")
    try:
        # Tags in other encodings than UTF-8 are common and of no interest here.
        return av.open(str(path), metadata_errors="ignore")
    except PermissionError as error:
        raise VideoError(path, "reading is not permitted", "Change its permissions.") from error
    except av.error.FFmpegError as error:
        if _lacks_index(path):
            reason = "the file is cut off, its index is missing (moov atom not found)"
            raise VideoError(path, reason) from error
        raise VideoError(path, _reason(error)) from error


def _reason(error: av.error.FFmpegError) -> str:
    return error.strerror or type(error).__name__


def _lacks_index(path: Path) -> bool:
    """True for an mp4 or mov file without a moov box.

    The library says so only in its log, and catching that log is known to deadlock with decoder threads.
    """
    with path.open("rb") as file:
        at, boxes, end = 0, [], path.stat().st_size
        while at < end:
            file.seek(at)
            header = file.read(16)
            boxes.append(header[4:8])
            size = int.from_bytes(header[:4], "big")
            if size == 1:  # the true size stands behind the name
                size = int.from_bytes(header[8:16], "big")
            if size < 8:  # 0 is "to the end of the file", the others are no boxes at all
                break
            at += size
    return boxes[0] == b"ftyp" and b"moov" not in boxes


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that set the frame upright, by its display matrix."""
    return round(frame.rotation / 90) % 4


def _to_rgb(frame: av.VideoFrame) -> Frames:
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, _quarter_turns(frame)), dtype=np.uint8)


def write_video(path: str | Path, frames: Frames, fps: float, *, crf: int = 18) -> None:
    """Write frames uint8 (T, H, W, 3) as an H.264 mp4 that browsers play; the file appears whole or not at all.

    Its colours are tagged (BT.709), its index stands in front, and its chroma is halved (yuv420p), which needs even
    sizes: an odd last column or row is repeated once, so that a video of 31×31 reads back as 32×32.

    Args:
        path: ends in .mp4; its folder is made.
        frames: at least one.
        fps: frames per second.
        crf: quality, 0 (best) to 51; 18 looks like the original.

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
    """As `write_video`, of frames uint8 (H, W, 3) that are made one after another and of which one is held at a time.

    The file appears when the last one is written; an error in making them leaves none.
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
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "x264-params": REPRODUCIBLE}
        _tag_colours(stream.codec_context)
        for number, pixels in enumerate(frames):
            _check_frame(pixels)
            height, width, _ = pixels.shape
            even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if not number:
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(_to_yuv(even)))
        container.mux(stream.encode(None))


def _tag_colours(context: Any) -> None:
    """Say that the colours are BT.709 of limited range: untagged, players guess by the size, and differ."""
    context.colorspace = context.color_primaries = context.color_trc = 1
    context.color_range = ColorRange.MPEG


def _to_yuv(pixels: Frames) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(
        format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
    )
