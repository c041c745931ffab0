"""Frame-by-frame comparison of each generated clip with its real clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.utilities.data import dim_zero_cat

from arvid.contracts import Clip, UserError
from arvid.evaluation.records import MetricValue
from arvid.evaluation.scores import Measured, Score, restore, without_sync
from arvid.metrics.paired import InnerMsSsim, MsSsim, PairedMetric, PairedScore, Psnr, Ssim
from arvid.metrics.perceptual import Lpips, NbpPerceptual
from arvid.processes import best_device

if TYPE_CHECKING:
    from arvid.evaluation.protocols import Protocol


class Paired(Score):
    """Frame-by-frame comparison of each generated clip with its real clip.

    Args:
        metric: computes the comparison.
        num_frames: number of scored frames that it uses, from the first; None: all.
        size: height and width for a first resize (bilinear, rounded to levels); None: no resize.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    build: ClassVar[Callable[[], PairedMetric]]
    """Constructor of the metric."""

    def __init__(
        self, metric: PairedMetric, *, num_frames: int | None = None, size: int | None = None
    ) -> None:
        self.metric = without_sync(metric).to(best_device())
        self.num_frames = num_frames
        self.size = size

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> Paired:
        if protocol.num_real is not None:
            raise UserError(
                f"{cls.name} compares clip with clip, but protocol {protocol.name} compares with a set."
            )
        return cls(cls.build(), num_frames=protocol.paired_frames, size=protocol.paired_size)

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        self.metric.reset()
        self.metric.update(self._seen(generated), self._seen(real))
        return {"frames": dim_zero_cat(self.metric.frame_scores).cpu()}

    def of_trajectories(self, measured: Sequence[Measured]) -> Measured:
        """For each real clip the clip with the best value, by this metric."""
        frames = torch.stack([found["frames"] for found in measured])  # (N, B, T)
        values = torch.stack([self.metric._clip_values(x.double()) for x in frames])
        best = values.argmax(0) if self.higher_is_better else values.argmin(0)
        return {"frames": frames[best, torch.arange(len(best))]}

    def _seen(self, videos: Tensor) -> Tensor:
        videos = videos[:, : self.num_frames].to(best_device())
        return videos if self.size is None else _resize(videos, self.size)

    def _computed(self, measured: Measured) -> PairedScore:
        restore(self.metric, frame_scores=measured["frames"])
        return self.metric.compute()

    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        score = self._computed(measured)
        return [
            MetricValue(
                name=self.name,
                label=self.label,
                value=score.value,
                spread=score.standard_error,
                spread_kind="standard error",
                count=score.num_clips,
                higher_is_better=self.higher_is_better,
                unit=self.unit,
                feature_network=getattr(self.metric, "name", None),
                feature_sha256=getattr(self.metric, "sha256", None),
                protocol=protocol,
            )
        ]

    def frame_values(self, measured: Measured) -> dict[str, Float[np.ndarray, "b t"]]:
        return {self.name: self._computed(measured).frame_values}

    def per_clip(self, measured: Measured) -> dict[str, list[float]]:
        return {self.name: self.metric._clip_values(measured["frames"].double()).tolist()}


class PsnrScore(Paired):
    """PSNR of each frame, averaged over frames and clips."""

    name, label, unit = "psnr", "PSNR", "dB"
    build = Psnr


class PsnrPooledScore(Paired):
    """PSNR of one squared error per clip, averaged over clips, as in the NBP code."""

    name, label, unit = "psnr-pooled", "PSNR (pooled)", "dB"
    build = partial(Psnr, pooled=True)

    def frame_values(self, measured: Measured) -> dict[str, Float[np.ndarray, "b t"]]:
        """Empty: the values of single frames are those of `psnr`."""
        return {}


class SsimScore(Paired):
    """SSIM (11 x 11 Gaussian window), averaged over frames and clips."""

    name, label = "ssim", "SSIM"
    build = Ssim


class MsSsimScore(Paired):
    """SSIM over five scales, averaged over frames and clips."""

    name, label = "ms-ssim", "MS-SSIM"
    build = MsSsim


class MsSsimNbpScore(Paired):
    """SSIM over five scales as in the NBP code, which calls pytorch-msssim. Frames of at least 161x161."""

    name, label = "ms-ssim-nbp", "MS-SSIM (NBP's)"
    build = InnerMsSsim


class LpipsScore(Paired):
    """LPIPS v0.1 with AlexNet, averaged over frames and clips. Needs AlexNet's weights."""

    name, label, higher_is_better = "lpips", "LPIPS", False
    build = partial(Lpips, "alex")


class LpipsVggScore(Paired):
    """LPIPS v0.1 with VGG-16."""

    name, label, higher_is_better = "lpips-vgg", "LPIPS (VGG)", False
    build = partial(Lpips, "vgg")


class LpipsSqueezeScore(Paired):
    """LPIPS v0.1 with SqueezeNet."""

    name, label, higher_is_better = "lpips-squeeze", "LPIPS (SqueezeNet)", False
    build = partial(Lpips, "squeeze")


class LpipsNbpScore(Paired):
    """LPIPS as the NBP code computes it: only frame 5, input in [0, 1]. Not comparable with the other variants."""

    name, label, higher_is_better = "lpips-nbp", "LPIPS (NBP's)", False
    build = NbpPerceptual

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> Paired:
        if protocol.condition_frames and not protocol.score_given:
            raise UserError(
                f"{cls.name} counts given frames too, which protocol {protocol.name} leaves out."
            )
        return super().for_protocol(protocol)

    def frame_values(self, measured: Measured) -> dict[str, Float[np.ndarray, "b t"]]:
        """Empty: the metric uses only one frame."""
        return {}


def _resize(videos: Tensor, size: int) -> Tensor:
    """Resize uint8 clips (B, T, H, W, 3): bilinear, half-pixel grid, not antialiased."""
    frames = rearrange(videos, "b t h w c -> (b t) c h w").float()
    small = F.interpolate(frames, (size, size), mode="bilinear", align_corners=False)
    levels = small.round().clamp(0, 255).to(torch.uint8)
    return rearrange(levels, "(b t) c h w -> b t h w c", b=len(videos))
