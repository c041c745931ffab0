"""Paired metrics: a generated clip against the clip that it should equal, frame by frame.

For frame prediction and tokenizer reconstruction. Each takes two uint8 videos (B, T, H, W, 3) and gives the
mean over clips with its standard error, and the mean of each frame index over clips: where a rollout decays.

Published numbers follow unlike conventions, so each class says which is its own:

- PSNR: one for each RGB frame, averaged over frames then clips (common_metrics_on_video_quality, MAGVIT); or
  `pooled`, one error for each clip, as the NBP code does. The first is never below the second.
- SSIM: torchmetrics' map (11x11 Gaussian, sigma 1.5, each RGB channel) averaged over the region where the window
  lies inside the frame, as in pytorch-msssim and common_metrics_on_video_quality. torchmetrics' own mean takes in
  the mirrored border too and differs in the third digit.
- MS-SSIM: torchmetrics', with its default five scales.

LPIPS is in arvid/metrics/perceptual.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from arvid.contracts import UserError
from arvid.metrics.inference import full_precision
from arvid.metrics.videos import check_pairs, unit_frames

MAX_PSNR = 100.0
"""Decibels given to a frame that is exactly right (its PSNR is infinite) or closer than this."""
SSIM_WINDOW = 11
MS_SSIM_MIN_SIZE = SSIM_WINDOW * 2**4
"""Shorter side that still holds the window at the fifth scale. (The NBP code asks for 256 pixels.)"""
FRAMES_AT_ONCE = 16
"""Frames that a metric works on together: long clips need no more memory than short ones."""


class PairedScore(NamedTuple):
    """What a paired metric computes, in its unit."""

    value: float
    """Mean over clips."""
    standard_error: float | None
    """Of the mean, over clips; None for a single clip."""
    num_clips: int
    """Number of clips."""
    per_frame: list[float]
    """Mean over clips at each frame index."""
    frame_values: Float[np.ndarray, "b t"]
    """Of each clip at each frame index, in double precision."""


class PairedMetric(Metric, ABC):
    """Base of the paired metrics: keeps one number for each frame of each clip. A new one defines `score_frames`.

    All clips of one metric object must have the same number of frames.
    """

    is_differentiable = False
    full_state_update = False

    frame_scores: list[Tensor]
    """(B, T) of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("frame_scores", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def score_frames(
        self, generated: Float[Tensor, "n 3 h w"], reference: Float[Tensor, "n 3 h w"]
    ) -> Float[Tensor, " n"]:
        """One number for each pair of frames, which come in [0, 1]."""

    @torch.no_grad()
    def update(self, generated: Tensor, reference: Tensor) -> None:
        """Add pairs of clips (B, T, H, W, 3).

        Raises ValueError for what is not uint8 video and for clips of unlike shape or another length.
        """
        check_pairs(generated, reference)
        num_clips, num_frames = generated.shape[:2]
        if self.frame_scores and self.frame_scores[0].shape[1] != num_frames:
            raise ValueError(
                f"All clips of a paired metric must have the same number of frames: "
                f"{self.frame_scores[0].shape[1]} so far, now {num_frames}."
            )
        pairs = zip(_frames(generated), _frames(reference), strict=True)
        with full_precision(generated.device.type):  # TF32 rounds as coarsely as SSIM's constants
            scores = [self.score_frames(unit_frames(a), unit_frames(b)) for a, b in pairs]
        self.frame_scores.append(rearrange(torch.cat(scores), "(b t) -> b t", b=num_clips))

    def compute(self) -> PairedScore:
        """Raises ValueError before the first update."""
        if not len(self.frame_scores):
            raise ValueError(f"{type(self).__name__} of no clips: update() was not called.")
        scores = dim_zero_cat(self.frame_scores).double()
        clips, frames = self._clip_values(scores), self._frame_values(scores)
        many = len(clips) > 1
        return PairedScore(
            value=float(clips.mean()),
            standard_error=float(clips.std() / len(clips) ** 0.5) if many else None,
            num_clips=len(clips),
            per_frame=frames.mean(0).tolist(),
            frame_values=frames.cpu().numpy(),
        )

    def _frame_values(self, scores: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        return scores

    def _clip_values(self, scores: Float[Tensor, "b t"]) -> Float[Tensor, " b"]:
        return self._frame_values(scores).mean(1)


class Psnr(PairedMetric):
    """Peak signal-to-noise ratio in dB, at most `MAX_PSNR` for each frame.

    Args:
        pooled: one mean squared error over all frames of a clip, instead of the mean of its frames' PSNR.
    """

    higher_is_better = True

    def __init__(self, *, pooled: bool = False) -> None:
        super().__init__()
        self.pooled = pooled

    def score_frames(self, generated: Tensor, reference: Tensor) -> Tensor:
        return (generated - reference).square().mean((1, 2, 3))

    def _frame_values(self, scores: Tensor) -> Tensor:
        return (-10 * scores.log10()).clamp(max=MAX_PSNR)

    def _clip_values(self, scores: Tensor) -> Tensor:
        if self.pooled:
            return self._frame_values(scores.mean(1))
        return super()._clip_values(scores)


class Ssim(PairedMetric):
    """Structural similarity, 1 for equal frames. Frames must be at least 11x11 (UserError)."""

    higher_is_better = True

    def score_frames(self, generated: Tensor, reference: Tensor) -> Tensor:
        from torchmetrics.functional import image  # slow to import, with torchvision

        require_size("SSIM", generated, SSIM_WINDOW)
        _, similarity = image.structural_similarity_index_measure(
            generated,
            reference,
            sigma=1.5,
            data_range=1.0,
            reduction="none",
            return_full_image=True,
        )
        border = SSIM_WINDOW // 2
        return similarity[..., border:-border, border:-border].mean((1, 2, 3))


class MsSsim(PairedMetric):
    """Structural similarity over five scales, 1 for equal frames. Frames must be at least 176x176 (UserError)."""

    higher_is_better = True

    def score_frames(self, generated: Tensor, reference: Tensor) -> Tensor:
        from torchmetrics.functional import image  # slow to import, with torchvision

        require_size("MS-SSIM", generated, MS_SSIM_MIN_SIZE)
        scores = image.multiscale_structural_similarity_index_measure(
            generated, reference, sigma=1.5, data_range=1.0, reduction="none"
        )
        return scores.reshape(len(generated))


def require_size(metric: str, frames: Float[Tensor, "n 3 h w"], smallest: int) -> None:
    """Raise UserError for frames of which one side is below `smallest` pixels."""
    height, width = frames.shape[-2:]
    if min(height, width) < smallest:
        raise UserError(
            f"{metric} needs frames of at least {smallest}x{smallest} pixels, got {height}x{width}."
        )


def _frames(videos: UInt8[Tensor, "b t h w 3"]) -> tuple[Tensor, ...]:
    """The frames of all clips, clip after clip, in parts that are clips (1, n, H, W, 3) themselves."""
    return rearrange(videos, "b t h w c -> 1 (b t) h w c").split(FRAMES_AT_ONCE, dim=1)
