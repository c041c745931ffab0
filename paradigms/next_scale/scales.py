"""Scales of a latent frame, made from the frame's own tokens: no multi-scale tokenizer is needed.

Continuous tokens: scale k is the residual after the earlier scales, averaged over areas. The frame is the sum of all
scales, each enlarged to the whole grid. (This is the residual pyramid of VAR, arXiv 2404.02905, without its codebook
and convolutions.)

Ids: scale k is the reduced frame. If the tokenizer has code vectors, they are averaged over areas, and each mean
becomes the nearest id. Otherwise the id at the centre of each area is used. The last scale is the frame itself, so the
earlier scales are only hints.

N frames, K scales, (h_k, w_k) tokens of scale k, (h, w) of the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from arvid.contracts import TokenGrid, TokenSpec, UserError
from arvid.nn.draws import counted_clips
from arvid.paradigms.next_scale.resize import Side, centres, enlarge, shrink

Corrupt = Callable[[Tensor, int], Tensor]
"""(tokens of a scale, index of the scale) -> corrupted tokens, which later scales see instead."""


def default_sides(grid: TokenGrid) -> list[Side]:
    """Sides halved (rounded up) from the whole grid down, until one of them is 1."""
    sides = [(grid.h, grid.w)]
    while min(sides[0]) > 1:
        rows, columns = sides[0]
        sides.insert(0, (-(-rows // 2), -(-columns // 2)))
    return sides


def check_sides(sides: Sequence[Sequence[int]], grid: TokenGrid) -> list[Side]:
    """The sides as given. Raises UserError unless they grow from scale to scale and end with the grid's."""
    found = [(side[0], side[1]) for side in sides]
    whole = (grid.h, grid.w)
    grows = all(a[0] <= b[0] and a[1] <= b[1] and a != b for a, b in pairwise(found))
    if not found or found[-1] != whole or not grows or min(found[0]) < 1:
        listed = ", ".join(f"{rows}x{columns}" for rows, columns in found) or "none"
        raise UserError(
            f"scales must grow from 1x1 or more to the token grid of {grid.h}x{grid.w}, not {listed}."
        )
    return found


@dataclass(frozen=True)
class Split:
    """The scales of some frames."""

    targets: list[Tensor]
    """Tokens (N, h_k, w_k[, C]) of each scale."""
    shown: list[Tensor]
    """Input of scale 1, 2, ...: see `Scales.shown`."""


@dataclass(frozen=True)
class Scales:
    """Splits frames of tokens into scales, and joins scales to frames.

    The canvas of a frame holds what its scales so far give. Ids: the ids of the last scale. Continuous tokens: the sum
    of the enlarged scales (N, h, w, C).
    """

    spec: TokenSpec
    sides: list[Side]

    @property
    def num_positions(self) -> list[int]:
        """Tokens of each scale."""
        return [rows * columns for rows, columns in self.sides]

    def split(self, frames: Tensor, corrupt: Corrupt | None = None) -> Split:
        """Targets of all scales of frames (N, h, w[, C]), and the input of each scale.

        With `corrupt`, the inputs are made from corrupted tokens. The targets of continuous tokens are the residuals to
        them, so later scales learn to correct errors of earlier ones.
        """
        targets: list[Tensor] = []
        shown: list[Tensor] = []
        canvas: Tensor | None = None
        for k in range(len(self.sides)):
            if canvas is not None:
                shown.append(self.shown(canvas, k))
            tokens = self._target(frames, canvas, k)
            targets.append(tokens)
            canvas = self.add(canvas, tokens if corrupt is None else corrupt(tokens, k))
        return Split(targets, shown)

    def add(self, canvas: Tensor | None, tokens: Tensor) -> Tensor:
        """The canvas with the tokens of the next scale. After the last scale it is the frame."""
        if self.spec.type == "discrete":
            return tokens
        drawn = enlarge(tokens.float(), self.sides[-1])
        return drawn if canvas is None else canvas + drawn

    def shown(self, canvas: Tensor, k: int) -> Tensor:
        """Input of scale k > 0 from a canvas: the ids of scale k - 1, or the reduced sum (N, h_k, w_k, C)."""
        return canvas if self.spec.type == "discrete" else shrink(canvas, self.sides[k])

    def _target(self, frames: Tensor, canvas: Tensor | None, k: int) -> Tensor:
        if self.spec.type == "discrete":
            return self._reduced(frames, self.sides[k])
        missing = frames.float() if canvas is None else frames.float() - canvas
        return shrink(missing, self.sides[k])

    def _reduced(self, ids: Tensor, side: Side) -> Tensor:
        """Ids (N, h, w) as a smaller grid of ids."""
        if side == self.sides[-1]:
            return ids
        if self.spec.codes is not None:
            return self.spec.codes.nearest(shrink(self.spec.codes.vectors(ids), side))
        rows, columns = (
            centres(n, new, ids.device) for n, new in zip(ids.shape[1:], side, strict=True)
        )
        return ids[:, rows[:, None], columns]


class ScaleRms(torch.nn.Module):
    """Root mean square of each scale's continuous tokens, measured over the first training steps and then fixed.

    Residuals shrink from scale to scale. Divided by these numbers, all scales have about unit variance, which the
    diffusion head expects. The numbers are 1 in the first step. They change only between steps, so they depend neither
    on the number of processes nor on the number of batches in a step.
    """

    STEPS = 100
    """Number of measured training steps."""
    values: Tensor
    num_steps: Tensor
    sums: Tensor

    def __init__(self, num_scales: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.ones(num_scales))
        self.register_buffer("num_steps", torch.zeros(()))
        # Of the current step: weighted sums of each scale's mean square, then the sum of the weights.
        self.register_buffer("sums", torch.zeros(num_scales + 1))

    @torch.no_grad()
    def measure(self, targets: Sequence[Tensor]) -> None:
        """Add a batch to the current step. Each process may hold a part of the batch."""
        squares = torch.stack([target.float().square().mean() for target in targets])
        weight = counted_clips(len(targets[0]))
        sums = torch.cat([squares * weight, squares.new_full((1,), weight)])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        self.sums.add_(sums)

    @torch.no_grad()
    def end_step(self) -> None:
        """Update the numbers from the batches of the ended step. A step with values that are not finite is left out."""
        done, count = self.num_steps.float(), self.sums[-1].float()
        found = self.sums[:-1].float() / count.clamp_min(1)
        # Running mean of squares over the measured steps. No `if`: it would wait for the device.
        mean = (self.values.float().square() * done + found) / (done + 1)
        measured = (done < self.STEPS) & (count > 0) & found.isfinite().all()
        self.values.copy_(torch.where(measured, mean.sqrt().clamp_min(1e-4), self.values.float()))
        self.num_steps.copy_(done + measured)
        self.sums.zero_()
