"""How a prediction holds up as it is rolled out: quality against the autoregressive step.

NOVA's appendix (arXiv:2412.14169, figure 3) draws such curves. A step is one predicted latent frame after the given
frames, so it stands for as many frames of video as the tokenizer's temporal stride.

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
    """One metric at the steps 1 to K, in the metric's unit."""

    mean: tuple[float, ...]
    """Over clips; of each clip the mean over the step's frames."""
    standard_error: tuple[float, ...] | None
    """Of the mean, over clips; None for a single clip."""
    num_clips: int
    frames_per_step: int


def step_curve(frame_values: Float[np.ndarray, "b t"], frames_per_step: int) -> StepCurve:
    """The curve of per-frame values (`PairedScore.frame_values`) of the predicted frames alone.

    Raises UserError if the frames do not fill whole steps.
    """
    num_clips, num_frames = frame_values.shape
    if num_frames % frames_per_step:
        raise UserError(
            f"{num_frames} predicted frames do not fill steps of {frames_per_step} frames each."
        )
    steps = rearrange(frame_values, "b (k f) -> b k f", f=frames_per_step).mean(2)
    error = steps.std(0, ddof=1) / num_clips**0.5 if num_clips > 1 else None
    return StepCurve(
        mean=tuple(steps.mean(0).tolist()),
        standard_error=None if error is None else tuple(error.tolist()),
        num_clips=num_clips,
        frames_per_step=frames_per_step,
    )
