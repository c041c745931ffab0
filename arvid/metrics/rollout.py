"""How a prediction holds up as it is rolled out: quality against the autoregressive step.

NOVA's appendix (arXiv:2412.14169, figure 3) draws such curves. A step is one predicted latent frame after the given
frames, so it stands for as many frames of video as the tokenizer's temporal stride. Two lines say how to read the
others: the tokenizer's reconstruction of the real clips, the ceiling of every model on its tokens, and the last given
frame repeated, which needs no model.

B clips, T frames, K steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, UInt8
from torch import Tensor

from arvid.contracts import TokenSpec, UserError
from arvid.metrics.paired import PairedMetric

LAST_FRAME = "last given frame"
"""The line that `Rollout` adds itself."""


@dataclass(frozen=True, kw_only=True)
class StepCurve:
    """One metric at the steps 1 to K, in the metric's unit."""

    mean: tuple[float, ...]
    """Over clips; of each clip the mean over the step's frames."""
    standard_error: tuple[float, ...] | None
    """Of the mean, over clips; None for a single clip."""
    num_clips: int


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
    )


def repeat_last_given(
    real: UInt8[Tensor, "b t h w 3"], given_frames: int
) -> UInt8[Tensor, "b t h w 3"]:
    """The clips with every frame after the given ones replaced by the last of these."""
    given = real[:, :given_frames]
    still = repeat(given[:, -1], "b h w c -> b t h w c", t=real.shape[1] - given_frames)
    return torch.cat([given, still], dim=1)


class Rollout:
    """Curves of one paired metric for any number of lines: models, the reconstruction, the last given frame.

    Args:
        metric: makes a metric, e.g. `Psnr` or `partial(Lpips, "squeeze")`; each line gets its own.
        spec: of the tokenizer; gives the frames of a step.
        given_frames: frames at the beginning of each clip that the models were given.

    Raises UserError where the given frames are none, or do not end with a latent frame.
    """

    def __init__(
        self, metric: Callable[[], PairedMetric], *, spec: TokenSpec, given_frames: int
    ) -> None:
        if given_frames < 1:
            raise UserError("A roll-out goes on from at least one given frame.")
        stride, height, width = spec.strides
        spec.grid(given_frames, height, width)  # an error unless they are whole latent frames
        self.frames_per_step = stride
        self.given_frames = given_frames
        self.lines: dict[str, PairedMetric] = {}
        self._metric = metric

    def update(self, real: Tensor, lines: Mapping[str, Tensor]) -> None:
        """Add whole clips, uint8 (B, T, H, W, 3), given frames included: the real ones and those of each line.

        Raises UserError where the lines are not those of the earlier batches, and ValueError for clips that a
        paired metric refuses.
        """
        clips = {**lines, LAST_FRAME: repeat_last_given(real, self.given_frames)}
        if not self.lines:
            self.lines = {name: self._metric() for name in clips}
        if clips.keys() != self.lines.keys():
            raise UserError(
                f"A roll-out compares the same lines throughout: {', '.join(self.lines)} so far, "
                f"now {', '.join(clips)}."
            )
        for name, videos in clips.items():
            self.lines[name].update(videos[:, self.given_frames :], real[:, self.given_frames :])

    def compute(self) -> dict[str, StepCurve]:
        """The curve of each line. Raises UserError if the predicted frames do not fill whole steps."""
        return {
            name: step_curve(metric.compute().frame_values, self.frames_per_step)
            for name, metric in self.lines.items()
        }
