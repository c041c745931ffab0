"""Keyboard sprites: a coloured shape that a key moves at each frame. The embedded dataset of actions.

As in `arvid.data.sprites`, clips are rendered from (seed, index) alone. Each clip has its actions as ids and as vectors
(the conditions `actions` and `action_vectors` of `arvid.nn.conditions`). So `arvid.metrics.actions` can check whether a
generated clip follows them.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arvid.contracts import Clip
from arvid.data.sprites import COLOURS, SHAPES, RenderedClips, Sprite, paint
from arvid.files import sha256_json
from arvid.ranges import SHARE

KEYS = {"stay": (0, 0), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Displacement of each key: steps to the right and down."""
CELLS = 16
"""Number of positions along each side of the frame; a key moves the shape by one position."""
STEP = 1 / CELLS
"""A step as a fraction of the frame: 2 pixels of 32."""
RADIUS = 0.17
"""Radius of the shape, as a fraction of the frame."""
GREY = 40.0
"""Level of the background."""
MOVES: NDArray[np.int64] = np.array(list(KEYS.values()))
_FIRST, _LAST = 3, CELLS - 3
"""First and last position at which the whole shape lies inside the frame."""
_VERSION = 1  # of the rendering: part of the fingerprint


class KeyboardSprites(RenderedClips):
    """Clips of one small shape on a plain background.

    Action i moves the shape from frame i - 1 to frame i; the first action is "stay". Keys that would move the shape out
    of the frame are not drawn.

    Args:
        num_clips: number of clips; higher indices raise IndexError.
        num_frames: frames per clip.
        change: probability that another key is drawn at a frame. Otherwise the last one stays pressed.
        options: see `arvid.data.sprites.RenderedClips`.

    Raises UserError for values outside their ranges.
    """

    value_names = MappingProxyType({"actions": tuple(KEYS), "action_vectors": ("right", "down")})

    def __init__(
        self,
        num_clips: int = 10_000,
        *,
        num_frames: int = 9,
        change: float = 0.25,
        **options: Any,
    ) -> None:
        super().__init__(num_clips, num_frames=num_frames, **options)
        SHARE.require(change=change)
        self.change = change

    def __getitem__(self, index: int) -> Clip:
        rng = self._generator(index)
        shape, colour = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))
        start = rng.integers(_FIRST, _LAST + 1, 2)
        actions = self._draw_actions(rng, start)
        x, y = ((start + np.cumsum(MOVES[actions], axis=0)) * STEP).astype(np.float32).T
        still = np.zeros(self.num_frames, np.float32)
        sprite = Sprite(shape, colour, "small", "moves", RADIUS, x, y, still)
        canvas = np.full((self.num_frames, self.size, self.size, 3), GREY, np.float32)
        canvas = paint(canvas, sprite)
        return Clip(
            video=np.clip(np.rint(canvas), 0, 255).astype(np.uint8),
            caption=f"a {colour} {shape}",
            motion=float(np.mean(actions[1:] > 0)) * STEP * self.size,
            name=f"keyboard-sprites-{self.seed}-{index:06d}",
            attributes={"shape": shape, "colour": colour},
            conditions={
                "actions": tuple(actions.tolist()),
                "action_vectors": tuple(map(tuple, MOVES[actions].astype(float).tolist())),
            },
        )

    def fingerprint(self) -> str:
        return sha256_json({"dataset": "keyboard-sprites", "version": _VERSION, **vars(self)})

    def _draw_actions(
        self, rng: np.random.Generator, start: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Ids of the keys (num_frames,). All of them keep the shape inside the frame."""
        actions = np.zeros(self.num_frames, np.int64)
        place = start
        for i in range(1, self.num_frames):
            places = place + MOVES
            allowed = np.flatnonzero(((places >= _FIRST) & (places <= _LAST)).all(1))
            actions[i] = actions[i - 1]
            if i == 1 or rng.random() < self.change or actions[i] not in allowed:
                actions[i] = rng.choice(allowed)
            place = places[actions[i]]
        return actions
