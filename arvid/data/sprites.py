"""Sprites: the embedded dataset. Coloured shapes move, turn or bounce over a plain or striped background.

Clips are rendered on demand: clip i is a pure function of (seed, i), so nothing is downloaded or stored. Each clip has
a caption, a class label, its exact attributes and its exact motion score. So generated clips can be checked against
their condition.

Coordinates are fractions of the frame (0 left/top, 1 right/bottom), so every size shows the same scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.files import sha256_json
from arvid.ranges import SHARE, at_least

Array = NDArray[np.float32]

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (230, 50, 50),
    "green": (60, 200, 70),
    "blue": (60, 100, 240),
    "yellow": (240, 220, 60),
    "purple": (190, 70, 220),
    "white": (245, 245, 245),
}
MOTIONS = ("moves left", "moves right", "moves up", "moves down", "turns", "bounces")
SIZES = {"small": (0.16, 0.19), "large": (0.24, 0.28)}
"""Range of a sprite's radius, as a fraction of the frame."""

CLASSES = tuple(
    f"{shape} {motion}"
    for shape in SHAPES
    for motion in MOTIONS
    if (shape, motion) != ("circle", "turns")  # a turning circle looks like one at rest
)

_DIRECTIONS = {
    "moves left": (-1, 0),
    "moves right": (1, 0),
    "moves up": (0, -1),
    "moves down": (0, 1),
}
_VERSION = 3  # of the rendering: part of the fingerprint


@dataclass(frozen=True)
class Sprite:
    """A shape and its path: position (fractions) and angle (radians) at each frame."""

    shape: str
    colour: str
    size: str
    motion: str
    radius: float
    x: Array
    y: Array
    angle: Array

    @property
    def phrase(self) -> str:
        """What a caption says about this sprite, such as "a small red circle bounces"."""
        return f"a {self.size} {self.colour} {self.shape} {self.motion}"


class RenderedClips(VideoDataset):
    """Base class of datasets that render clip i from (seed, i), uint8 (num_frames, size, size, 3).

    Args:
        num_clips: number of clips; higher indices raise IndexError.
        seed: seed of the clips. Sets with different seeds share no clip.
        num_frames: frames per clip.
        size: height and width in pixels.

    Raises UserError for values outside their ranges.
    """

    def __init__(
        self, num_clips: int = 10_000, *, seed: int = 0, num_frames: int = 17, size: int = 32
    ) -> None:
        at_least(1).require(num_clips=num_clips)
        at_least(0).require(seed=seed)
        at_least(2).require(num_frames=num_frames)
        at_least(8).require(size=size)
        self.num_clips = num_clips
        self.seed = seed
        self.num_frames = num_frames
        self.size = size

    def __len__(self) -> int:
        return self.num_clips

    def _generator(self, index: int) -> np.random.Generator:
        """Random generator of a clip. Raises IndexError if there is no clip of this index."""
        if not 0 <= index < self.num_clips:
            raise IndexError(f"clip {index} of {self.num_clips}")
        return np.random.default_rng([self.seed, index])


class Sprites(RenderedClips):
    """Clips of one or two moving shapes.

    Args:
        num_clips: number of clips; higher indices raise IndexError.
        sizes: sizes of the shapes: "small", "large" or both.
        second: probability of a second, small shape behind the first one. The caption then names both, the first one
            first; label and attributes are those of the first one.
        textured: probability of a striped background instead of a plain one.
        options: see `RenderedClips`.

    Raises UserError for values outside their ranges.
    """

    classes = CLASSES

    def __init__(
        self,
        num_clips: int = 10_000,
        *,
        sizes: tuple[str, ...] = tuple(SIZES),
        second: float = 0.25,
        textured: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(num_clips, **options)
        SHARE.require(second=second, textured=textured)
        unknown = sorted(set(sizes) - set(SIZES))
        if unknown or not sizes:
            raise UserError(
                f"Sprites' sizes are {' and '.join(SIZES)}, got {', '.join(unknown) or 'none'}."
            )
        self.sizes = tuple(sizes)
        self.second = second
        self.textured = textured

    def __getitem__(self, index: int) -> Clip:
        # The order of all random draws below is part of the dataset: another order gives other clips.
        rng = self._generator(index)
        sprites = self._draw_sprites(rng)
        canvas = _background(rng, self.num_frames, self.size, self.textured)
        for sprite in reversed(sprites):  # painted last, so the first one is in front
            canvas = paint(canvas, sprite)
        first = sprites[0]
        return Clip(
            video=np.clip(np.rint(canvas), 0, 255).astype(np.uint8),
            caption=" and ".join(sprite.phrase for sprite in sprites),
            label=CLASSES.index(f"{first.shape} {first.motion}"),
            motion=_motion_score(first, self.size),
            name=f"sprites-{self.seed}-{index:06d}",
            attributes={"shape": first.shape, "colour": first.colour, "motion": first.motion},
        )

    def fingerprint(self) -> str:
        options = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return sha256_json({"dataset": "sprites", "version": _VERSION, **options})

    def _draw_sprites(self, rng: np.random.Generator) -> list[Sprite]:
        if rng.random() >= self.second:
            return [_sprite(rng, str(rng.choice(list(self.sizes))), self.num_frames, taken=None)]
        first = _sprite(rng, "large", self.num_frames, taken=None)
        return [first, _sprite(rng, "small", self.num_frames, taken=first.colour)]


def _sprite(rng: np.random.Generator, size: str, num_frames: int, *, taken: str | None) -> Sprite:
    shape, motion = CLASSES[rng.integers(len(CLASSES))].split(" ", 1)
    colour = str(rng.choice([c for c in COLOURS if c != taken]))
    radius = float(rng.uniform(*SIZES[size]))
    x, y, angle = _path(rng, motion, radius, num_frames)
    return Sprite(shape, colour, size, motion, radius, x, y, angle)


def _path(
    rng: np.random.Generator, motion: str, radius: float, num_frames: int
) -> tuple[Array, Array, Array]:
    """Position x, y and angle at each frame. The shape always stays inside the frame."""
    time = np.arange(num_frames, dtype=np.float32)
    low, high = radius, 1 - radius
    rest_x, rest_y = rng.uniform(low, high, 2)
    x: Array = np.full(num_frames, rest_x, np.float32)
    y: Array = np.full(num_frames, rest_y, np.float32)
    angle: Array = np.zeros(num_frames, np.float32)
    if motion in _DIRECTIONS:
        # Along one axis, over 60 to 100 % of the free way.
        travel = float(rng.uniform(0.6, 1.0)) * (high - low)
        start = float(rng.uniform(0, high - low - travel))
        path = np.float32(low + start) + np.float32(travel) * time / np.float32(num_frames - 1)
        dx, dy = _DIRECTIONS[motion]
        if dx:
            x = path if dx > 0 else np.float32(1) - path
        else:
            y = path if dy > 0 else np.float32(1) - path
    elif motion == "turns":
        angle = time * np.float32(rng.choice([-1.0, 1.0]) * rng.uniform(0.12, 0.2))
    else:  # bounces: |sin| is 0 on the floor, y = high
        height = float(rng.uniform(0.5, 0.7)) * (high - low)
        phase = time / np.float32(rng.uniform(9, 12)) + np.float32(rng.uniform(0, 1))
        y = np.float32(high) - np.float32(height) * np.abs(np.sin(np.float32(np.pi) * phase))
    return x, y, angle


def _motion_score(sprite: Sprite, size: int) -> float:
    """Mean displacement of the shape in pixels per frame; for a turning shape, that of its rim."""
    steps = np.hypot(np.diff(sprite.x), np.diff(sprite.y)) * size
    rim = np.abs(np.diff(sprite.angle)) * sprite.radius * size
    return float(np.mean(np.maximum(steps, rim))) if len(steps) else 0.0


def _background(rng: np.random.Generator, num_frames: int, size: int, textured: float) -> Array:
    """Background (T, H, W, 3) in 0..255: one dark grey, or soft stripes between two."""
    dark, light = rng.uniform(10, 80, 2)
    frame = np.full((size, size), dark)
    if rng.random() < textured:
        direction = rng.uniform(0, np.pi)
        y, x = np.mgrid[0:size, 0:size] / size
        across = x * np.cos(direction) + y * np.sin(direction)  # coordinate across the stripes
        wave = np.sin(2 * np.pi * rng.uniform(1, 2) * across)
        frame = dark + (light - dark) * (0.5 + 0.5 * wave)
    return np.broadcast_to(frame[None, ..., None].astype(np.float32), (num_frames, size, size, 3))


def paint(canvas: Array, sprite: Sprite) -> Array:
    """Paint a sprite over (T, H, W, 3), antialiased: its coverage falls from 1 to 0 over one pixel."""
    size = canvas.shape[1]
    centre = (np.arange(size, dtype=np.float32) + 0.5) / size
    dx = centre[None, None, :] - sprite.x[:, None, None]  # (T, 1, W)
    dy = centre[None, :, None] - sprite.y[:, None, None]  # (T, H, 1)
    cos, sin = np.cos(sprite.angle)[:, None, None], np.sin(sprite.angle)[:, None, None]
    u, v = cos * dx + sin * dy, cos * dy - sin * dx  # (T, H, W), coordinates of the shape
    # Signed distance to the outline: negative inside. The shapes are defined at radius 1.
    distance = _DISTANCES[sprite.shape](u / sprite.radius, v / sprite.radius) * sprite.radius
    coverage = np.clip(0.5 - distance * size, 0, 1)[..., None].astype(np.float32)
    colour = np.array(COLOURS[sprite.colour], np.float32)
    painted: Array = canvas * (1 - coverage) + colour * coverage
    return painted


def _circle(u: Array, v: Array) -> Array:
    return _single(np.hypot(u, v) - 1)


def _square(u: Array, v: Array) -> Array:
    return _single(np.maximum(np.abs(u), np.abs(v)) - 0.85)


def _triangle(u: Array, v: Array) -> Array:
    """Equilateral, point up: the largest of the signed distances to its three sides."""
    return _single(np.maximum(np.sqrt(0.75) * np.abs(u) - 0.5 * v, v) - 0.5)


def _cross(u: Array, v: Array) -> Array:
    """The union of an upright and a level bar, so the minimum of their distances."""
    upright = np.maximum(np.abs(u) - 0.32, np.abs(v) - 1)
    level = np.maximum(np.abs(u) - 1, np.abs(v) - 0.32)
    return _single(np.minimum(upright, level))


def _single(distance: NDArray[Any]) -> Array:
    return distance.astype(np.float32, copy=False)


_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross}
"""Shape -> signed distance of points (u, v) to its outline."""
