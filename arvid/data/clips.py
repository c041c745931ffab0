"""From a video to a clip: choose the frames, and resize them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from arvid.contracts import UserError
from arvid.data._area import can_shrink, shrink
from arvid.ranges import above, at_least

Frames = NDArray[np.uint8]
Resize = Literal["crop", "squash"]

_CHOICES = {
    "window": ("random", "center", "start"),
    "resize": ("crop", "squash"),
    "short": ("drop", "pad", "black"),
}


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """How clips are cut out of videos. Raises UserError for invalid values."""

    num_frames: int = 17
    """Frames per clip."""
    size: int | tuple[int, int] = 64
    """Height and width in pixels; one number is a square."""
    fps: float | None = None
    """Take frames at this rate. A slower video keeps its own rate: no frame is repeated."""
    stride: int = 1
    """Take every stride-th frame. Give either this or fps."""
    window: Literal["random", "center", "start"] = "random"
    """Where in the video the clip lies."""
    resize: Resize = "crop"
    """crop: scale until the frame covers the size, then cut out the centre. squash: change the aspect ratio."""
    short: Literal["drop", "pad", "black"] = "drop"
    """Videos that are too short. drop: leave them out. pad: repeat their last frame. black: add black frames."""

    def __post_init__(self) -> None:
        at_least(1).require("clip.", num_frames=self.num_frames, size=self.size, stride=self.stride)
        above(0).require("clip.", fps=self.fps)
        if self.fps is not None and self.stride != 1:
            raise UserError(
                f"Give a clip either fps ({self.fps}) or stride ({self.stride}), not both."
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                given = getattr(self, name)
                raise UserError(f"{name} of a clip is one of {', '.join(choices)}, got {given!r}.")

    @property
    def height_width(self) -> tuple[int, int]:
        """Height and width in pixels."""
        if isinstance(self.size, int):
            return self.size, self.size
        height, width = self.size
        return height, width

    def step(self, video_fps: float) -> float:
        """Frames of the video per frame of the clip (1 or more)."""
        if self.fps is None:
            return float(self.stride)
        # Within 0.2 % the rates count as equal: 30 and 29.97, or 25 and 25.00002.
        return video_fps / self.fps if video_fps > self.fps * 1.002 else 1.0

    def clip_fps(self, video_fps: float) -> float:
        """Frame rate of a clip of a video with this rate."""
        return video_fps / self.step(video_fps)


def clip_indices(
    num_frames: int,
    fps: float,
    spec: ClipSpec,
    *,
    times: NDArray[np.float64] | None = None,
    rng: np.random.Generator | None = None,
    window: int = 0,
    num_windows: int = 1,
) -> NDArray[np.int64] | None:
    """Indices (spec.num_frames,) of a clip's frames in a video of `num_frames` at `fps`, ascending.

    The possible starts are divided into `num_windows` equal parts; window i starts in part i. Returns None if the video
    is too short (spec.short "drop"). Raises ValueError for a random window without rng.

    `times` are the seconds (num_frames,) at which the frames of a video with a varying rate are shown (`Probe.times`).
    If `spec.fps` is given too, the clip has the frames nearest in time.
    """
    if times is not None and spec.fps is not None and num_frames:
        return _nearest_in_time(times, fps, spec, rng, window, num_windows)
    offsets = _offsets(fps, spec)
    slack = num_frames - 1 - int(offsets[-1])
    if num_frames < 1 or (slack < 0 and spec.short == "drop"):
        return None
    start = _start(max(slack, 0), spec, rng, window, num_windows)
    return np.minimum(start + offsets, num_frames - 1)


def frames_needed(fps: float, spec: ClipSpec) -> int:
    """Smallest number of frames that a video at `fps` needs for a clip."""
    return 1 if spec.short != "drop" else int(_offsets(fps, spec)[-1]) + 1


def frames_there(
    num_frames: int, fps: float, spec: ClipSpec, times: NDArray[np.float64] | None = None
) -> int:
    """How many frames of a clip the video has. The others repeat the last one, or are black."""
    if times is not None and spec.fps is not None:
        return int((times[0] + _seconds(fps, spec) < times[-1] + 0.5 / fps).sum())
    return int((_offsets(fps, spec) < num_frames).sum())


def _nearest_in_time(
    times: NDArray[np.float64],
    fps: float,
    spec: ClipSpec,
    rng: np.random.Generator | None,
    window: int,
    num_windows: int,
) -> NDArray[np.int64] | None:
    """Indices of the frames shown nearest to t0 + k / rate, where t0 is the time of the first frame."""
    seconds = _seconds(fps, spec)
    # As with a constant rate, the last time may lie up to half a frame after the last frame.
    latest = times[-1] + 0.5 / fps - seconds[-1]
    slack = int(np.searchsorted(times, latest, side="right")) - 1
    if slack < 0 and spec.short == "drop":
        return None
    start = _start(max(slack, 0), spec, rng, window, num_windows)
    wanted = times[start] + seconds
    # The nearest frame is one of the two neighbours of the wanted time; ties go to the later one.
    after = np.clip(np.searchsorted(times, wanted), 1, max(1, len(times) - 1))
    before = after - 1
    after = np.minimum(after, len(times) - 1)
    return np.where(wanted - times[before] < times[after] - wanted, before, after)


def _seconds(fps: float, spec: ClipSpec) -> NDArray[np.float64]:
    """Times of the clip's frames after its first one (spec.num_frames,)."""
    return np.arange(spec.num_frames) / spec.clip_fps(fps)


def _offsets(fps: float, spec: ClipSpec) -> NDArray[np.int64]:
    """Frames of the clip counted from its first one (spec.num_frames,). Halves are rounded up, never to even."""
    return np.floor(np.arange(spec.num_frames) * spec.step(fps) + 0.5).astype(np.int64)


def _start(
    slack: int, spec: ClipSpec, rng: np.random.Generator | None, window: int, num_windows: int
) -> int:
    """First frame of a window, from 0 to `slack`."""
    if spec.window != "random":
        offset = 0.5 if spec.window == "center" else 0.0
        return int((window + offset) / num_windows * slack)
    if rng is None:
        raise ValueError("a random window needs a random generator: give rng")
    return int((window + rng.random()) / num_windows * (slack + 1))


def resize_frames(frames: Frames, size: int | tuple[int, int], mode: Resize = "crop") -> Frames:
    """Resize frames (T, H, W, 3) to `size` (height and width), antialiased: uint8 (T, height, width, 3).

    "crop" scales until the frame covers the size and cuts out the centre; "squash" changes the aspect ratio.
    """
    height_width = (size, size) if isinstance(size, int) else size
    return np.stack([fit_frame(frame, height_width, mode) for frame in frames])


def fit_frame(
    pixels: Frames,
    size: tuple[int, int],
    mode: Resize = "crop",
    shown: tuple[int, int] | None = None,
) -> Frames:
    """`resize_frames` for one frame (H, W, 3). `shown` is its size as displayed, if its pixels are not square."""
    height, width = size
    covered = size
    if mode == "crop":
        old_height, old_width = shown or pixels.shape[:2]
        # The larger factor makes the frame cover the size; rounding must not make it smaller.
        factor = max(height / old_height, width / old_width)
        covered = max(height, round(old_height * factor)), max(width, round(old_width * factor))
    top, left = (covered[0] - height) // 2, (covered[1] - width) // 2
    if can_shrink((pixels.shape[0], pixels.shape[1]), covered):
        return shrink(pixels, covered, top, left, size)
    scaled = _scale(pixels, *covered)
    return np.ascontiguousarray(scaled[top : top + height, left : left + width])


def _scale(pixels: Frames, height: int, width: int) -> Frames:
    """Resize a frame: first the axes that shrink, then those that grow.

    INTER_AREA averages all source pixels under a target pixel, without aliasing or ringing. It does so only if no axis
    grows, so there are two passes. Growing cannot alias, and cubic is sharper than linear.
    """
    small = min(height, pixels.shape[0]), min(width, pixels.shape[1])
    return _resize(_resize(pixels, small, cv2.INTER_AREA), (height, width), cv2.INTER_CUBIC)


def _resize(pixels: Frames, size: tuple[int, int], interpolation: int) -> Frames:
    if pixels.shape[:2] == size:
        return pixels
    height, width = size
    return cv2.resize(pixels, (width, height), interpolation=interpolation).astype(
        np.uint8, copy=False
    )
