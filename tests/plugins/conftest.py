"""Pseudo-random weights from a formula, so that the published code can be run elsewhere on the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def noise() -> Callable[[tuple[int, ...], int], Tensor]:
    """Numbers in [-1, 1) of a shape. They depend on the key."""
    return _noise


@pytest.fixture(scope="session")
def formula_weights() -> Callable[[Mapping[str, tuple[int, ...]]], dict[str, Tensor]]:
    """Weights by name, from their shapes. Their size keeps the variance of activations about the same."""

    def make(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        return {name: _weight(name, shapes[name], key) for key, name in enumerate(sorted(shapes))}

    return make


def _weight(name: str, shape: tuple[int, ...], key: int) -> Tensor:
    if len(shape) == 1:  # biases, and the scales of norms
        scale = name.endswith("weight") or name.endswith("running_var")
        return 0.3 * _noise(shape, key) + float(scale)
    return _noise(shape, key) * math.sqrt(3 / math.prod(shape[1:]))


def _noise(shape: tuple[int, ...], key: int) -> Tensor:
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    values = torch.sin(places * 12.9898 + key * 78.233) * 43758.5453
    return (2 * (values - values.floor()) - 1).float().reshape(shape)
