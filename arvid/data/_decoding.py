"""Decode the frames of a video file in one pass, from its start or from a key frame."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import av.stream

from arvid.contracts import UserError
from arvid.data._layout import Layout
from arvid.data._picture import Orientation, Painter, orientation_of, stretch_of
from arvid.data.clips import Frames

FPS_TOLERANCE = 0.01
"""Relative difference up to which a measured frame rate counts as the header's."""
MAX_PIXELS = 8192 * 4320
"""Largest frame, in pixels: cinema's 8K. Without a limit, a file of some kilobytes can ask for gigabytes of memory."""


_LFS = b"version https://git-lfs.github.com/"
"""First bytes of a Git LFS pointer: a text file in place of a large file."""


class VideoError(UserError):
    """A video file that cannot be read. The message has the file, the reason and what to do."""

    def __init__(self, path: str | Path, reason: str, advice: str = "") -> None:
        self.path = Path(path)
        self.reason = reason
        self.advice = advice or "Fetch the file again, or leave it out."
        super().__init__(f"{self.path} cannot be read as a video: {reason}. {self.advice}")

    def __reduce__(self) -> tuple[type[VideoError], tuple[Path, str, str]]:
        # Data workers pickle their errors. By default, unpickling would call __init__ with the message alone.
        return type(self), (self.path, self.reason, self.advice)


class Reader:
    """One pass over the video stream of a file. Errors of the library become VideoErrors.

    Args:
        path: the file.
        max_pixels: frames with more pixels are refused before memory is allocated for them.
    """

    def __init__(self, path: str | Path, *, max_pixels: int = MAX_PIXELS) -> None:
        self.path = Path(path)
        self.max_pixels = max_pixels
        self.num_frames = 0
        """Index in the file of the last decoded frame, plus one."""
        self.turn = Orientation()
        """Orientation of the last decoded frame."""
        self._stored = (0, 0)
        self._first_shown = (0, 0)
        self._first_time, self._last_time = float("inf"), float("-inf")
        self._num_untimed = 0
        """Frames before the first one with a time. mkv files have them if their times begin below 0."""

    def __enter__(self) -> Reader:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()
        # The generator refers to this reader. Breaking that cycle frees the decoder at once.
        self._frames = _none()

    @property
    def stream(self) -> av.VideoStream:
        """The stream that is read."""
        return self._stream

    @property
    def container_name(self) -> str:
        """Names of the container's kind, separated by commas."""
        return self._container.format.name

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width of the first decoded frame as it is displayed.

        Later frames of another size or pixel shape are resized to it, as ffmpeg's option -autoscale does.
        """
        return self._first_shown

    @property
    def as_stored(self) -> bool:
        """Whether the last decoded frame is displayed as stored, or only rotated: not mirrored, not stretched."""
        turned = self.turn.transposed ^ self.turn.flip_rows ^ self.turn.flip_columns
        return not turned and self._stretched(self._stored[1]) == self._stored[1]

    def packets(self) -> Iterator[av.Packet[Any]]:
        """Yield the stream's packets, and at the end an empty one, which flushes the decoder."""
        try:
            yield from self._container.demux(self._stream)
        except av.error.FFmpegError as error:
            raise self._fails(error) from error

    def decode(self) -> Iterator[av.VideoFrame]:
        """Yield the frames in the decoder's order. Raises VideoError on corruption, and if there is no frame."""
        yield from self._frames
        if not self.num_frames:
            raise VideoError(self.path, "no frame of it can be decoded")

    def decode_packets(self, packets: Iterable[av.Packet[Any] | None]) -> Iterator[av.VideoFrame]:
        """Yield the frames of some packets. None flushes the decoder."""
        try:
            for packet in packets:
                for frame in self._stream.codec_context.decode(packet):
                    self._note(frame)
                    yield frame
        except av.error.FFmpegError as error:
            raise self._fails(error) from error

    def painted(
        self, paint: Painter, frame: av.VideoFrame, shown: tuple[int, int] | None = None
    ) -> Frames:
        """Pixels uint8 (H, W, 3) of the last decoded frame. After a seek, give the size of the first frame as `shown`.

        Raises VideoError if the library cannot convert its colours to RGB.
        """
        try:
            return paint(frame, shown or self._first_shown, self.turn)
        except av.error.FFmpegError as error:
            colours = f"{frame.format.name}, colour space {int(frame.colorspace)}"
            reason = f"its pixels ({colours}) cannot be converted to RGB ({_reason(error)})"
            raise VideoError(
                self.path, reason, "Encode it again as BT.709, or leave it out."
            ) from error

    def seek(self, layout: Layout, index: int) -> int:
        """Let `decode` begin at the last key frame up to `index`. Returns the index of its first frame.

        Where a seek lands depends on container and library. So it counts only if it lands on a packet that the layout
        knows. Otherwise decoding begins at the start, and the index is 0.
        """
        key = layout.key_before(index)
        if key is None or key.frame == 0:
            return 0
        for stamp in (key.pts, key.dts):
            landed = None if stamp is None else self._land(layout, stamp)
            if landed is not None and landed <= index:
                return landed
        self._container.close()
        self._open()
        return 0

    def fps(self) -> float:
        """Mean frame rate of the frames decoded so far, from their timestamps if there are any."""
        num_timed = self.num_frames - self._num_untimed
        return self.rate(num_timed, self._last_time - self._first_time)

    def rate(self, num_frames: int, span: float) -> float:
        """Mean rate of `num_frames` frames, with `span` seconds from the first to the last.

        Only the first and the last time count, so their order does not matter. If the header's rate agrees, that one
        is returned, because it is exact. A file without any rate has 25.
        """
        header = float(self._stream.average_rate or self._stream.guessed_rate or 25)
        if num_frames < 2 or not 0 < span < float("inf"):
            return header
        measured = (num_frames - 1) / span
        return header if abs(measured / header - 1) < FPS_TOLERANCE else measured

    def _open(self) -> None:
        self._container = _open(self.path)
        try:
            self._stream = self._pick_stream()
            self._stretch = stretch_of(self._stream.sample_aspect_ratio)
            context = self._stream.codec_context
            self._require_size(context.height, context.width)
            # Clips are read in parallel already. And a forked worker would wait for ever for threads of its parent.
            context.thread_count = 1
            # The library counts whole blocks, so more pixels than are displayed.
            context.options = {"max_pixels": str(2 * self.max_pixels + 2**16)}
        except VideoError:
            self._container.close()
            raise
        self.num_frames, self._stored, self.turn = 0, (0, 0), Orientation()
        self._frames = self.decode_packets(self.packets())

    def _pick_stream(self) -> av.VideoStream:
        streams = self._container.streams.video
        if not streams:
            raise VideoError(self.path, "it holds no video stream")
        for stream in streams:
            if not stream.disposition & av.stream.Disposition.attached_pic:
                return stream
        raise VideoError(self.path, "it holds sound with a cover picture, and no video stream")

    def _land(self, layout: Layout, stamp: int) -> int | None:
        """Seek, and decode up to the first key frame. Its index, or None if the layout does not know it."""
        try:
            self._container.seek(stamp, stream=self._stream)
            packets = self.packets()
            first = next(packets)
            self._stored, self.turn = (0, 0), layout.turn
            known = {(key.pts, key.dts): key for key in layout.keys}
            key = known.get((first.pts, first.dts))
            if key is None:
                return None
            frames = self.decode_packets(chain([first], packets))
            # Earlier frames (leading B-frames) depend on frames that were not decoded.
            frame = next((frame for frame in frames if frame.key_frame), None)
        except (VideoError, av.error.FFmpegError, StopIteration):
            return None
        if frame is None or (layout.in_order and frame.pts != key.pts):
            return None
        self.num_frames = key.frame + 1
        self._frames = chain([frame], frames)
        return key.frame

    def _note(self, frame: av.VideoFrame) -> None:
        """Update size, orientation, times and the count by a decoded frame."""
        stored, turn = (frame.height, frame.width), self.turn
        is_first = self._stored == (0, 0)
        if frame.key_frame or is_first:
            turn = orientation_of(frame) or turn  # H.264 may state it only once
        if stored != self._stored:
            self._require_size(*stored)
        self._stored, self.turn = stored, turn
        if is_first:
            self._first_shown = turn.shape(stored[0], self._stretched(stored[1]))
        self.num_frames += 1
        if frame.time is not None:
            self._first_time = min(self._first_time, frame.time)
            self._last_time = max(self._last_time, frame.time)
        elif self._last_time < self._first_time:
            self._num_untimed += 1

    def _stretched(self, width: int) -> int:
        return width if self._stretch == 1 else max(1, round(width * self._stretch))

    def _require_size(self, height: int, width: int) -> None:
        shown = self._stretched(width)
        if height * max(width, shown) > self.max_pixels:
            raise VideoError(
                self.path,
                f"its frames of {height}x{shown} have more than {self.max_pixels:,} pixels",
                "Allow more by max_pixels, or leave the file out.",
            )

    def _fails(self, error: av.error.FFmpegError) -> VideoError:
        where = f"after {self.num_frames} frames" if self.num_frames else "at its first frame"
        return VideoError(self.path, f"decoding fails {where} ({_reason(error)})")


def _none() -> Iterator[av.VideoFrame]:
    yield from ()


def _open(path: Path) -> av.container.InputContainer:
    if not os.path.exists(path):  # False for names that are too long, too
        raise VideoError(path, "there is no such file", "Check the path.")
    if path.is_dir():
        raise VideoError(path, "it is a folder", "Give the path of one video file.")
    if path.stat().st_size == 0:
        raise VideoError(path, "the file is empty (0 bytes)")
    try:
        # Metadata is often not UTF-8, and is not used here.
        return av.open(str(path), metadata_errors="ignore")
    except PermissionError as error:
        raise VideoError(path, "reading is not permitted", "Change its permissions.") from error
    except av.error.FFmpegError as error:
        if _first_bytes(path, len(_LFS)) == _LFS:
            reason = "it is a pointer of Git LFS to the video"
            raise VideoError(path, reason, "Fetch the video: git lfs pull.") from error
        if _lacks_index(path):
            reason = "the file is cut off, its index is missing (moov atom not found)"
            raise VideoError(path, reason) from error
        raise VideoError(path, _reason(error)) from error


def _reason(error: av.error.FFmpegError) -> str:
    return error.strerror or type(error).__name__


def _first_bytes(path: Path, num: int) -> bytes:
    with path.open("rb") as file:
        return file.read(num)


def _lacks_index(path: Path) -> bool:
    """Whether this is an mp4 or mov file without a moov box.

    The library reports that only in its log, and catching the log can deadlock with decoder threads.
    """
    with path.open("rb") as file:
        # A box begins with its size (4 bytes, big-endian) and its name (4 bytes).
        at, boxes, end = 0, [], path.stat().st_size
        while at < end:
            file.seek(at)
            header = file.read(16)
            boxes.append(header[4:8])
            size = int.from_bytes(header[:4], "big")
            if size == 1:  # the size is in the 8 bytes after the name
                size = int.from_bytes(header[8:16], "big")
            if size < 8:  # 0: up to the end of the file; 2 to 7: not a box
                break
            at += size
    return boxes[0] == b"ftyp" and b"moov" not in boxes
