"""Paired metrics: frame-by-frame comparison of a generated clip with its reference clip.

For frame prediction and tokenizer reconstruction. Each metric takes two uint8 videos (B, T, H, W, 3). It gives the mean
over clips with its standard error, and the mean at each frame index, which shows where a rollout degrades.

Conventions of published values differ. Those used here:

- PSNR: of each RGB frame, averaged over frames, then over clips (common_metrics_on_video_quality, MAGVIT). With
  `pooled`: of one squared error per clip, as in the NBP code; this value is never higher.
- SSIM: torchmetrics' map (11x11 Gaussian, sigma 1.5, each RGB channel), averaged where the window lies inside the
  frame, as in pytorch-msssim and common_metrics_on_video_quality. torchmetrics' own mean includes the mirrored border
  and differs in the third digit.
- MS-SSIM: torchmetrics', with its default five scales. `InnerMsSsim` averages where the window lies inside the frame,
  and compares each colour channel alone, as in pytorch-msssim, which the NBP code uses.

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
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from arvid.contracts import UserError
from arvid.metrics.inference import full_precision
from arvid.metrics.videos import check_pairs, unit_frames

MAX_PSNR = 100.0
"""Upper limit of a frame's PSNR in dB: equal frames have an infinite PSNR."""
SSIM_WINDOW = 11
MS_SSIM_MIN_SIZE = SSIM_WINDOW * 2**4
"""Smallest side, pixels: the window must fit at the fifth scale."""
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weight of each scale, from the finest (Wang et al., 2003)."""
INNER_MS_SSIM_MIN_SIZE = (SSIM_WINDOW - 1) * 2**4 + 1
"""Smallest side of `InnerMsSsim`, pixels. (The NBP code requires 256.)"""
FRAMES_AT_ONCE = 16
"""Frames per call of `score_frames`: long clips need no more memory than short ones."""


class PairedScore(NamedTuple):
    """Result of a paired metric, in its unit."""

    value: float
    """Mean over clips."""
    standard_error: float | None
    """Standard error of `value`, over clips; None for a single clip."""
    num_clips: int
    """Number of clips."""
    per_frame: list[float]
    """Mean over clips at each frame index."""
    frame_values: Float[np.ndarray, "b t"]
    """Value of each frame of each clip, float64."""


class PairedMetric(Metric, ABC):
    """Base class of paired metrics: keeps one value per frame and clip. Subclasses define `score_frames`.

    All clips of one metric object must have the same number of frames.
    """

    is_differentiable = False
    full_state_update = False

    frame_scores: list[Tensor]
    """Values (B, T) of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("frame_scores", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def score_frames(
        self, generated: Float[Tensor, "n 3 h w"], reference: Float[Tensor, "n 3 h w"]
    ) -> Float[Tensor, " n"]:
        """One value per pair of frames. Frames are in [0, 1]."""

    @torch.no_grad()
    def update(self, generated: Tensor, reference: Tensor) -> None:
        """Add pairs of clips (B, T, H, W, 3).

        Raises ValueError unless both are uint8 videos of one shape, with as many frames as earlier clips.
        """
        check_pairs(generated, reference)
        num_clips, num_frames = generated.shape[:2]
        if self.frame_scores and self.frame_scores[0].shape[1] != num_frames:
            raise ValueError(
                f"All clips of a paired metric must have the same number of frames: "
                f"{self.frame_scores[0].shape[1]} so far, now {num_frames}."
            )
        pairs = zip(_frames(generated), _frames(reference), strict=True)
        # The rounding of TF32 is as large as SSIM's constants.
        with full_precision(generated.device.type):
            scores = [self.score_frames(unit_frames(a), unit_frames(b)) for a, b in pairs]
        self.frame_scores.append(rearrange(torch.cat(scores), "(b t) -> b t", b=num_clips))

    def compute(self) -> PairedScore:
        """The score over all clips. Raises ValueError before the first update."""
        if not len(self.frame_scores):
            raise ValueError(f"{type(self).__name__} of no clips: update() was not called.")
        scores = dim_zero_cat(self.frame_scores).double()
        clips, frames = self._clip_values(scores), self._frame_values(scores)
        standard_error = float(clips.std() / len(clips) ** 0.5) if len(clips) > 1 else None
        return PairedScore(
            value=float(clips.mean()),
            standard_error=standard_error,
            num_clips=len(clips),
            per_frame=frames.mean(0).tolist(),
            frame_values=frames.cpu().numpy(),
        )

    def _frame_values(self, scores: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        return scores

    def _clip_values(self, scores: Float[Tensor, "b t"]) -> Float[Tensor, " b"]:
        return self._frame_values(scores).mean(1)


class Psnr(PairedMetric):
    """Peak signal-to-noise ratio in dB, at most `MAX_PSNR` per frame.

    Args:
        pooled: use one mean squared error over all frames of a clip. Default: the mean of the frames' PSNR.
    """

    higher_is_better = True

    def __init__(self, *, pooled: bool = False) -> None:
        super().__init__()
        self.pooled = pooled

    def score_frames(self, generated: Tensor, reference: Tensor) -> Tensor:
        # mean squared error: kept instead of PSNR because `pooled` averages it before the logarithm
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
        # torchmetrics mirrors the border; keep only positions with the whole window inside the frame
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


class InnerMsSsim(PairedMetric):
    """MS-SSIM of windows inside the frame, as pytorch-msssim has it; at least 161x161 pixels (UserError)."""

    higher_is_better = True

    def score_frames(self, generated: Tensor, reference: Tensor) -> Tensor:
        require_size("MS-SSIM", generated, INNER_MS_SSIM_MIN_SIZE)
        score = generated.new_ones(generated.shape[:2])  # (N, 3)
        for scale, weight in enumerate(MS_SSIM_WEIGHTS, 1):
            similarity, structure = inner_similarity(generated, reference)
            part = similarity if scale == len(MS_SSIM_WEIGHTS) else structure
            score = score * part.relu() ** weight
            odd = [side % 2 for side in generated.shape[-2:]]  # the border is padded with zeros
            generated, reference = (
                F.avg_pool2d(frames, 2, padding=odd) for frames in (generated, reference)
            )
        return score.mean(1)


def inner_similarity(
    a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """SSIM and its contrast-structure part of each channel, averaged over the windows inside the frame.

    Frames are in [0, 1]. Wang et al. (2004), with an 11x11 Gaussian of sigma 1.5, K1 = 0.01 and K2 = 0.03.
    """
    offsets = torch.arange(SSIM_WINDOW, device=a.device, dtype=a.dtype) - SSIM_WINDOW // 2
    line = (-offsets.square() / (2 * 1.5**2)).exp()
    line = (line / line.sum()).expand(a.shape[1], 1, 1, -1)  # one window for each channel

    def mean(x: Tensor) -> Tensor:
        x = F.conv2d(x, line.transpose(2, 3), groups=len(line))
        return F.conv2d(x, line, groups=len(line))

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * structure).mean((2, 3)), structure.mean((2, 3))


def require_size(metric: str, frames: Float[Tensor, "n 3 h w"], smallest: int) -> None:
    """Raise UserError for frames with a side below `smallest` pixels."""
    height, width = frames.shape[-2:]
    if min(height, width) < smallest:
        raise UserError(
            f"{metric} needs frames of at least {smallest}x{smallest} pixels, got {height}x{width}."
        )


def _frames(videos: UInt8[Tensor, "b t h w 3"]) -> tuple[Tensor, ...]:
    """The frames of all clips in order, as chunks (1, n, H, W, 3) of at most `FRAMES_AT_ONCE` frames."""
    return rearrange(videos, "b t h w c -> 1 (b t) h w c").split(FRAMES_AT_ONCE, dim=1)
