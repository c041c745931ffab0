"""Rollout curves: quality against the autoregressive step, as in NOVA's appendix (arXiv:2412.14169, figure 3).

A step is one predicted latent frame. It covers as many video frames as the tokenizer's temporal stride.

B clips, T frames, K steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float

from arvid.errors import UserError


@dataclass(frozen=True, kw_only=True)
class StepCurve:
    """One metric at steps 1 to K, in the metric's unit."""

    mean: tuple[float, ...]
    """Mean over clips and over the step's frames."""
    standard_error: tuple[float, ...] | None
    """Standard error of `mean`, over clips; None for a single clip."""
    num_clips: int
    frames_per_step: int


def step_curve(frame_values: Float[np.ndarray, "b t"], frames_per_step: int) -> StepCurve:
    """The curve from values of the predicted frames only (see `PairedScore.frame_values`).

    Raises UserError if the frames do not fill whole steps.
    """
    num_clips, num_frames = frame_values.shape
    if num_frames % frames_per_step:
        raise UserError(
            f"{num_frames} predicted frames do not fill steps of {frames_per_step} frames each."
        )
    steps = rearrange(frame_values, "b (k f) -> b k f", f=frames_per_step).mean(2)
    # over the step values of clips: frames of one step are correlated
    error = steps.std(0, ddof=1) / num_clips**0.5 if num_clips > 1 else None
    return StepCurve(
        mean=tuple(steps.mean(0).tolist()),
        standard_error=None if error is None else tuple(error.tolist()),
        num_clips=num_clips,
        frames_per_step=frames_per_step,
    )
