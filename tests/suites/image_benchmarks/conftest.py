"""A sampler that needs no model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest


class Painter:
    """Plain images, each in a colour of its prompt and seed; remembers what it was asked for."""

    def __init__(self, size: int = 8) -> None:
        self.size = size
        self.prompts: list[str] = []

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        self.prompts.append(prompts[0])
        colours = [self.colour(p, s) for p, s in zip(prompts, seeds, strict=True)]
        shape = (len(prompts), self.size, self.size, 3)
        return np.broadcast_to(np.stack(colours)[:, None, None], shape).copy()

    @staticmethod
    def colour(prompt: str, seed: int) -> np.ndarray:
        digest = hashlib.sha256(f"{prompt} {seed}".encode()).digest()
        return np.frombuffer(digest[:3], dtype=np.uint8)


@pytest.fixture
def painter() -> Painter:
    return Painter()
