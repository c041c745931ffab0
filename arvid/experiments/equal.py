"""Equal budgets for unlike models: the width that gives equal parameters, or the steps that give equal FLOPs."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from arvid.contracts import Size, UserError
from arvid.data.datamodule import VideoDataModule
from arvid.evaluation.budget import count_parameters, training_flops
from arvid.nn.heads.diffusion import DiffusionHead
from arvid.sampling.sample import Conditions
from arvid.training.cli import build_generator_and_data
from arvid.training.generator_module import GeneratorModule, build_generator

TOLERANCE = 0.02
"""Largest relative difference between budgets that count as equal."""
WIDTH_STEP = 4
"""Widths are multiples of this: sine-cosine positions need four channels, and rotary positions two per head."""
DEPTHS = (0, -1, 1, -2, 2)
"""Changes of depth that are tried, in this order, if no width has a budget within the tolerance."""


@dataclass(frozen=True)
class Cost:
    """Cost of a training."""

    parameters: int
    flops_per_clip: float
    """Forward and backward pass."""
    clips_per_step: int
    steps: int

    @property
    def flops(self) -> float:
        """FLOPs of the whole training."""
        return self.flops_per_clip * self.clips_per_step * self.steps


def cost(configs: Sequence[str], options: Sequence[str]) -> Cost:
    """Cost of a `fit` configuration, counted on its untrained model. Raises UserError as `arvid fit` does."""
    model, data = _build(configs, options)
    setting = model.description["setting"]
    return Cost(
        parameters=count_parameters(model),
        flops_per_clip=training_flops(model, Conditions.of_clips([data.val[0]])),
        clips_per_step=setting["data.clips_per_step"],
        steps=setting["trainer.max_steps"],
    )


def _build(
    configs: Sequence[str], options: Sequence[str]
) -> tuple[GeneratorModule, VideoDataModule]:
    """The untrained model and the data, without Lightning's messages about a training."""
    messages = logging.getLogger("lightning")
    level = messages.level
    messages.setLevel(logging.ERROR)
    try:
        return build_generator_and_data(configs, options)
    finally:
        messages.setLevel(level)


def steps_for(flops: float, of: Cost) -> int:
    """Number of steps after which a training has used `flops`. Raises UserError if one step needs more than half."""
    steps = round(flops / (of.flops_per_clip * of.clips_per_step))
    if steps < 2:
        raise UserError(
            f"A budget of {flops:.3g} FLOPs is too small: one step of this row uses it."
        )
    return steps


def size_for(parameters: int, configs: Sequence[str], options: Sequence[str]) -> Size:
    """The size of a model with about as many parameters: first by its width, then its diffusion head's, then its depth.

    Raises UserError if no size comes within 2 %.
    """
    model, _ = _build(configs, options)
    config = model.description["config"]

    @cache
    def count(size: Size) -> int:
        return count_parameters(build_generator({**config, "size": dataclasses.asdict(size)}))

    size = Size(**config["size"])
    has_head = any(isinstance(part, DiffusionHead) for part in model.paradigm.modules())
    found = []
    for change in DEPTHS:
        deeper = dataclasses.replace(size, depth=size.depth + change)
        if deeper.depth < 1:
            continue
        nearest = _nearest_size(deeper, parameters, count, has_head=has_head)
        found.append(nearest)
        if abs(count(nearest) / parameters - 1) <= TOLERANCE:
            return nearest
    best = min(found, key=lambda size: abs(count(size) - parameters))
    raise UserError(
        f"No size of {' '.join(configs)} has {parameters:,} parameters within {TOLERANCE:.0%}: the nearest, of width "
        f"{best.dim} and depth {best.depth}, has {count(best):,}. Choose a larger size."
    )


def _nearest_size(
    size: Size, parameters: int, count: Callable[[Size], int], *, has_head: bool
) -> Size:
    """The size of this depth with the nearest number of parameters."""

    def wider(units: int) -> Size:
        return _of_width(size, units * WIDTH_STEP)

    start = size.dim // WIDTH_STEP
    nearest = wider(_nearest(lambda units: count(wider(units)), parameters, start))
    if not has_head or abs(count(nearest) / parameters - 1) <= TOLERANCE:
        return nearest

    def wider_head(units: int) -> Size:
        return dataclasses.replace(nearest, head_dim=units * 8)

    units = _nearest(lambda units: count(wider_head(units)), parameters, size.head_dim // 8)
    return wider_head(units)


def _of_width(size: Size, dim: int) -> Size:
    """The size with another width, and with the number of heads that changes the width of a head least."""
    wanted = size.dim / size.num_heads
    possible = [n for n in range(1, dim // 2 + 1) if dim % (2 * n) == 0]
    heads = min(possible, key=lambda n: abs(math.log(dim / n / wanted)))
    return dataclasses.replace(size, dim=dim, num_heads=heads)


def _nearest(count: Callable[[int], int], target: int, start: int) -> int:
    """The n >= 1 whose count is nearest to the target. `count` grows with n."""
    high = max(start, 1)
    while count(high) < target:
        high *= 2
    low = 1
    while low < high:  # the smallest n that reaches the target
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= target else (middle + 1, high)
    return min((n for n in (low - 1, low) if n >= 1), key=lambda n: abs(count(n) - target))
