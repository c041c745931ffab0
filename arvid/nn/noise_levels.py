"""Noise levels of latent frames: random levels in training, a schedule of levels in sampling.

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
"""Levels of the frames of a clip: one for all, one for each, or one for each in rising order."""
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
    """Noise levels of a training batch, and a mask of its clean frames (level 0).

    Each frame is clean with probability `clean_share`, independently of the others. With `non-decreasing` levels the
    clean frames come first. `shift` moves the levels towards noise, see `arvid.nn.noise.shifted`.
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
    # -1 marks clean frames: it sorts before all levels, and a drawn level of exactly 0 is not confused with it.
    level = level.masked_fill(clean, -1.0)
    if levels == "non-decreasing":
        level = level.sort(dim=1).values
    return level.clamp_min(0.0), level < 0


def schedule(
    num_frames: int, given: int, num_steps: int, stagger: float | int | None
) -> list[list[int]]:
    """Remaining denoising steps (S to 0) of each frame: one row before the first step, and one after each step.

    Frame i begins `stagger` steps after frame i - 1 (the pyramid of diffusion forcing, arXiv 2407.01392). With 0, all
    frames are denoised together. With S or more, or None, one frame is denoised after another. The first `given` frames
    are finished from the start. Rows without a change are left out.
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

    Min-SNR clips the weight at a signal-to-noise ratio of `clip`. Fused: the ratio of a frame is first combined with
    that of its neighbours, because they show a part of the frame already. With causal attention these are the frames
    before it, as a running mean. Otherwise it is the mean of the running means from both sides.
    """
    # In units of the clip: `ratio` is S / clip, and `clipped` is min(S, clip) / clip.
    ratio = snr / clip
    clipped = ratio.clamp_max(1.0)
    shown = _running_mean(clipped, decay)
    if not causal:
        shown = 0.5 * (shown + _running_mean(clipped.flip(1), decay).flip(1))
    unknown = 1 - decay * shown
    fused = clip * (1 - unknown * (1 - ratio))
    fused_clipped = clip * (1 - unknown * (1 - clipped))
    # min-SNR of noise prediction, clipped / fused, times the factor fused / (fused + 1) of v-prediction.
    return fused_clipped / (fused + 1)


def _running_mean(values: Float[Tensor, "b t"], decay: float) -> Float[Tensor, "b t"]:
    """Exponential running mean over the frames before each frame; 0 for the first frame."""
    means = [torch.zeros_like(values[:, 0])]
    for i in range(values.shape[1] - 1):
        before = values[:, 0] if i == 0 else means[-1]
        means.append(decay * before + (1 - decay) * values[:, i])
    return torch.stack(means, dim=1)
