"""The noise level of each latent frame: drawn in training, and step by step in sampling.

B clips, t latent frames, S denoising steps. A level is 0 for clean tokens and 1 for pure noise.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arvid.nn.draws import draw
from arvid.nn.noise import shifted

Levels = Literal["common", "independent", "non-decreasing"]
"""Whether the frames of a clip share one level, have each their own, or have own ones in rising order."""
LevelDraw = Literal["logit-normal", "uniform", "cosine"]
"""Distribution of a level: sigmoid(n) with normal n, u, or cos(πu/2) with uniform u (MaskGIT's masking ratio)."""


def draw_levels(
    batch: int,
    frames: int,
    *,
    levels: Levels,
    distribution: LevelDraw,
    shift: float,
    clean_share: float,
    device: torch.device,
) -> tuple[Float[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Levels of a training batch, and which frames are shown clean (these have level 0).

    Each frame is clean with probability `clean_share`, on its own. With `non-decreasing` levels the clean frames are
    put in front. `shift` moves the levels towards noise, see `arvid.nn.noise.shifted`.
    """
    num = 1 if levels == "common" else frames
    sample = torch.randn if distribution == "logit-normal" else torch.rand
    level = draw(partial(sample, device=device), [batch, num])
    if distribution == "logit-normal":
        level = level.sigmoid()
    elif distribution == "cosine":
        level = (level * (math.pi / 2)).cos()
    level = shifted(level, shift).expand(-1, frames)
    clean = draw(partial(torch.rand, device=device), [batch, frames]) < clean_share
    level = level.masked_fill(clean, -1.0)
    if levels == "non-decreasing":
        level = level.sort(dim=1).values
    return level.clamp_min(0.0), level < 0


def schedule(
    num_frames: int, given: int, num_steps: int, stagger: float | int | None
) -> list[list[int]]:
    """Steps that are left for each frame, before the first step and after each: rows of S…0.

    Frame i begins `stagger` steps after the frame before it (the pyramid of diffusion forcing, arXiv 2407.01392):
    0 denoises all frames together; S or more, or None, one after another. `given` first frames are finished from the
    start, and rows in which nothing happens are left out.
    """
    stagger = num_steps if stagger is None else min(stagger, num_steps)
    rows: list[list[int]] = []
    for m in range(num_steps + int((num_frames - 1) * stagger) + 1):
        left = (num_steps + int(i * stagger) - m for i in range(num_frames))
        row = [min(max(k, 0), num_steps) for k in left]
        rows.append([0] * given + row[given:])
    return [rows[0], *(after for before, after in pairwise(rows) if after != before)]


def fused_snr_weight(
    snr: Float[Tensor, "b t"], *, causal: bool, clip: float = 5.0, decay: float = 0.9
) -> Float[Tensor, "b t"]:
    """Weight of each frame's v-prediction loss: fused min-SNR (DFoT, arXiv 2502.06764).

    Min-SNR with a clip, where the signal-to-noise ratio of a frame is raised by what its neighbours show already: the
    running mean of the frames before it or, where attention is not causal, half the sum of those of both sides.
    """
    ratio = snr / clip
    clipped = ratio.clamp_max(1.0)
    shown = _running_mean(clipped, decay)
    if not causal:
        shown = 0.5 * (shown + _running_mean(clipped.flip(1), decay).flip(1))
    unknown = 1 - decay * shown
    fused = clip * (1 - unknown * (1 - ratio))
    fused_clipped = clip * (1 - unknown * (1 - clipped))
    return fused_clipped / (
        fused + 1
    )  # (clipped / fused) for noise, times fused / (fused + 1) for v


def _running_mean(values: Float[Tensor, "b t"], decay: float) -> Float[Tensor, "b t"]:
    """Of the frames before each one; 0 for the first."""
    means = [torch.zeros_like(values[:, 0])]
    for i in range(values.shape[1] - 1):
        before = values[:, 0] if i == 0 else means[-1]
        means.append(decay * before + (1 - decay) * values[:, i])
    return torch.stack(means, dim=1)
