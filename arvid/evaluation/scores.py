"""What a protocol measures: metrics behind one interface, in two steps.

`measure` looks at a batch of clips and gives tensors with one entry for each clip; `values` makes the numbers from
those of all clips. What was measured is kept on disk batch by batch, so an evaluation goes on where it was
interrupted, and its result is the same for any number of processes.

A new metric is a subclass of `Score` in one file, named in the registry or by an entry point of the group
`arvid.metrics`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from arvid import registry
from arvid.contracts import Clip, UserError
from arvid.evaluation.records import MetricValue
from arvid.metrics.attributes import AttributeAccuracy
from arvid.metrics.frechet import (
    FeatureNetwork,
    bootstrap_spread,
    frechet_distance_from_features,
)
from arvid.metrics.fvd import fvd_features
from arvid.metrics.kernel_distance import kernel_video_distance
from arvid.metrics.paired import MsSsim, PairedMetric, PairedScore, Psnr, Ssim
from arvid.metrics.perceptual import Lpips, NbpPerceptual
from arvid.metrics.pixel_features import PixelFeatures
from arvid.metrics.sample_count import bootstrap_interval, sample_count_curve
from arvid.metrics.sprites_net import load_sprites_net

if TYPE_CHECKING:
    from arvid.evaluation.protocols import Protocol

M = TypeVar("M", bound=Metric)
Measured = Mapping[str, Tensor]
"""What was measured, by name; the first axis of every tensor runs over the clips."""


class Score(ABC):
    """One metric under a protocol."""

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> Score:
        """The metric as a protocol wants it; by default it has no options.

        Raises UserError where the protocol lacks what the metric needs, or weights are missing.
        """
        return cls()

    @abstractmethod
    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        """Measure generated clips: one entry for each, whatever batch it is in.

        Args:
            generated: uint8 (B, T, H, W, 3), the frames that the protocol scores.
            real: likewise, the clips whose conditions they were made from.
            clips: those clips, with the captions and attributes that were asked for.
        """

    def measure_real(self, real: Tensor) -> Measured:
        """Measure clips uint8 (B, T, H, W, 3) of the real set, for a metric between sets."""
        return {}

    @abstractmethod
    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        """The numbers, from what was measured on all clips."""

    def per_frame(self, measured: Measured) -> dict[str, list[float]]:
        """Curves over the frames that were scored, by name; none by default."""
        return {}

    def per_clip(self, measured: Measured) -> dict[str, list[float]]:
        """One number for each clip, by name, where the metric is their mean; none by default."""
        return {}


def scores_for(protocol: Protocol) -> dict[str, Score]:
    """The protocol's metrics, by name."""
    return {n: registry.get("metrics", n).for_protocol(protocol) for n in protocol.metrics}


class Features:
    """A feature network on the best device, asked once for the clips that several metrics look at."""

    def __init__(self, network: FeatureNetwork) -> None:
        self.network = network.eval().to(best_device())
        self._last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Tensor:
        """Features (B, d) of uint8 clips (B, T, H, W, 3). Raises UserError if they are not finite."""
        if self._last is None or self._last[0] is not videos:
            features = self.network(videos.to(best_device())).float().cpu()
            if not torch.isfinite(features).all():
                raise UserError(f"{self.network.name} gave features that are not finite.")
            self._last = videos, features
        return self._last[1]


@cache
def _i3d(preprocessing: str) -> Features:
    return Features(fvd_features(preprocessing))


class Distance(Score):
    """A distance between the set of real clips and that of generated ones over the features of a network."""

    name: ClassVar[str]
    label: ClassVar[str]

    def __init__(self, features: Features, *, ddof: int = 1) -> None:
        self.features = features
        self.ddof = ddof

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        return {"generated": self.features(generated)}

    def measure_real(self, real: Tensor) -> Measured:
        return {"real": self.features(real)}

    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        value = MetricValue(
            name=self.name,
            label=self.label,
            value=self.distance(measured["real"], measured["generated"]),
            count=len(measured["generated"]),
            higher_is_better=False,
            feature_network=self.features.network.name,
            feature_sha256=self.features.network.sha256,
            protocol=protocol,
        )
        return [self.with_uncertainty(value, measured["real"], measured["generated"])]

    @abstractmethod
    def distance(self, real: Tensor, generated: Tensor) -> float:
        """Distance of two sets of features (N, d) and (M, d)."""

    def with_uncertainty(self, value: MetricValue, real: Tensor, generated: Tensor) -> MetricValue:
        """The value with its spread; by default it has none."""
        return value


class Frechet(Distance):
    """Fréchet distance; spread and interval by bootstrap."""

    def distance(self, real: Tensor, generated: Tensor) -> float:
        return float(frechet_distance_from_features(real, generated, self.ddof))

    def with_uncertainty(self, value: MetricValue, real: Tensor, generated: Tensor) -> MetricValue:
        found = bootstrap_interval(real, generated, ddof=self.ddof)
        return dataclasses.replace(
            value,
            spread=bootstrap_spread(real, generated, ddof=self.ddof),
            spread_kind="bootstrap",
            interval=(found.low, found.high),
        )


class FdSprites(Frechet):
    """Fréchet distance over the embedded sprites classifier; not an FVD."""

    name = "fd-sprites"
    label = "FD (sprites)"

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> FdSprites:
        return cls(Features(load_sprites_net()), ddof=protocol.ddof)


class FdPixels(Frechet):
    """Fréchet distance over the mean colours of coarse cells; not an FVD."""

    name = "fd-pixels"
    label = "FD (pixels)"

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> FdPixels:
        return cls(Features(PixelFeatures()), ddof=protocol.ddof)


class Fvd(Frechet):
    """FVD: the Fréchet distance over the logits of I3D, preprocessed as the protocol says."""

    name = "fvd"
    label = "FVD"

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> Fvd:
        return cls(_i3d(_preprocessing(protocol, cls.name)), ddof=protocol.ddof)


class Rfvd(Fvd):
    """FVD between real clips and their reconstructions: far lower than that of generated clips."""

    name = "rfvd"
    label = "rFVD"

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> Rfvd:
        if protocol.task != "reconstruction":
            raise UserError(f"rfvd is a metric of reconstructions, not of a {protocol.task}.")
        return cls(_i3d(_preprocessing(protocol, cls.name)), ddof=protocol.ddof)


class Kvd(Distance):
    """KVD: the kernel distance of TATS over the logits of I3D. Unbiased, so it may be below 0."""

    name = "kvd"
    label = "KVD"

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> Kvd:
        return cls(_i3d(_preprocessing(protocol, cls.name)))

    def distance(self, real: Tensor, generated: Tensor) -> float:
        return float(kernel_video_distance(real, generated))


class FvdLimit(Fvd):
    """FVD extrapolated to endless clips, by a line in 1 / N through the distances of subsets."""

    name = "fvd-limit"
    label = "FVD (N → ∞)"

    def distance(self, real: Tensor, generated: Tensor) -> float:
        limit = sample_count_curve(real, generated, ddof=self.ddof).limit
        if limit is None:
            raise UserError(
                f"fvd-limit needs many more clips than the {real.shape[1]} features, "
                f"not {min(len(real), len(generated))}."
            )
        return limit

    def with_uncertainty(self, value: MetricValue, real: Tensor, generated: Tensor) -> MetricValue:
        return value


class FvdOverTime(Score):
    """FVD of each window of 16 frames, one after another: where long clips drift away from real ones."""

    WINDOW: ClassVar[int] = 16

    def __init__(self, windows: Fvd) -> None:
        self.windows = windows

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> FvdOverTime:
        return cls(Fvd.for_protocol(protocol))

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        return {"generated": self._features(generated)}

    def measure_real(self, real: Tensor) -> Measured:
        return {"real": self._features(real)}

    def _features(self, videos: Tensor) -> Tensor:
        """(B, W, d). Raises UserError for clips shorter than a window."""
        windows = videos.split(self.WINDOW, dim=1)
        whole = [w for w in windows if w.shape[1] == self.WINDOW]
        if not whole:
            raise UserError(f"fvd-over-time needs clips of at least {self.WINDOW} scored frames.")
        return torch.stack([self.windows.features(w) for w in whole], dim=1)

    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        pairs = zip(measured["real"].unbind(1), measured["generated"].unbind(1), strict=True)
        found = []
        for i, (real, generated) in enumerate(pairs):
            (value,) = self.windows.values({"real": real, "generated": generated}, protocol)
            first, last = i * self.WINDOW, (i + 1) * self.WINDOW - 1
            name, label = f"fvd-{first}-{last}", f"FVD, frames {first} to {last}"
            found.append(dataclasses.replace(value, name=name, label=label))
        return found


def _preprocessing(protocol: Protocol, metric: str) -> str:
    if protocol.preprocessing is None:
        raise UserError(f"{metric} needs a preprocessing, and protocol {protocol.name} names none.")
    return protocol.preprocessing


class Attributes(Score):
    """Share of the attributes asked for that the clips show, in percent."""

    def __init__(self) -> None:
        self.metric = _alone(AttributeAccuracy())

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        self.metric.reset()
        self.metric.update(generated, [clip.attributes for clip in clips])
        return {"hits": dim_zero_cat(self.metric.hits)}

    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        _restore(self.metric, hits=measured["hits"])
        errors = self.metric.standard_errors()
        return [
            MetricValue(
                name=name,
                label=name.removesuffix("-accuracy").capitalize() + " accuracy",
                value=100 * float(value),
                spread=100 * float(errors[name]),
                spread_kind="standard error",
                count=len(measured["hits"]),
                unit="%",
                feature_network=self.metric.network.name,
                feature_sha256=self.metric.network.sha256,
                protocol=protocol,
            )
            for name, value in self.metric.compute().items()
        ]


class Paired(Score):
    """A frame-by-frame comparison of each generated clip with its real one.

    Args:
        metric: does it.
        num_frames: frames of the scored ones that it looks at, from the first; all by default.
        size: height and width that they are brought to first (bilinear, rounded to levels).
    """

    name: ClassVar[str]
    label: ClassVar[str]
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    build: ClassVar[Callable[[], PairedMetric]]
    """Makes the metric."""

    def __init__(
        self, metric: PairedMetric, *, num_frames: int | None = None, size: int | None = None
    ) -> None:
        self.metric = _alone(metric).to(best_device())
        self.num_frames = num_frames
        self.size = size

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> Paired:
        if protocol.num_real is not None:
            raise UserError(
                f"{cls.name} compares clip with clip, and protocol {protocol.name} with a set."
            )
        return cls(cls.build(), num_frames=protocol.paired_frames, size=protocol.paired_size)

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        self.metric.reset()
        self.metric.update(self._seen(generated), self._seen(real))
        return {"frames": dim_zero_cat(self.metric.frame_scores).cpu()}

    def _seen(self, videos: Tensor) -> Tensor:
        videos = videos[:, : self.num_frames].to(best_device())
        return videos if self.size is None else _resize(videos, self.size)

    def _computed(self, measured: Measured) -> PairedScore:
        _restore(self.metric, frame_scores=measured["frames"])
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

    def per_frame(self, measured: Measured) -> dict[str, list[float]]:
        return {self.name: self._computed(measured).per_frame}

    def per_clip(self, measured: Measured) -> dict[str, list[float]]:
        return {self.name: self.metric._clip_values(measured["frames"].double()).tolist()}


class PsnrScore(Paired):
    """Mean over frames and clips of each frame's PSNR."""

    name, label, unit = "psnr", "PSNR", "dB"
    build = Psnr


class PsnrPooledScore(Paired):
    """Mean over clips of the PSNR of one error for all frames, as the NBP code has it."""

    name, label, unit = "psnr-pooled", "PSNR (pooled)", "dB"
    build = partial(Psnr, pooled=True)

    def per_frame(self, measured: Measured) -> dict[str, list[float]]:
        """None: frame by frame it is `psnr`."""
        return {}


class SsimScore(Paired):
    """Mean over frames and clips of SSIM (11 x 11 Gaussian window)."""

    name, label = "ssim", "SSIM"
    build = Ssim


class MsSsimScore(Paired):
    """Mean over frames and clips of SSIM over five scales."""

    name, label = "ms-ssim", "MS-SSIM"
    build = MsSsim


class LpipsScore(Paired):
    """Mean over frames and clips of LPIPS v0.1 with AlexNet, whose weights must be there."""

    name, label, higher_is_better = "lpips", "LPIPS", False
    build = partial(Lpips, "alex")


class LpipsVggScore(Paired):
    """The same with VGG-16."""

    name, label, higher_is_better = "lpips-vgg", "LPIPS (VGG)", False
    build = partial(Lpips, "vgg")


class LpipsSqueezeScore(Paired):
    """The same with SqueezeNet."""

    name, label, higher_is_better = "lpips-squeeze", "LPIPS (SqueezeNet)", False
    build = partial(Lpips, "squeeze")


class LpipsNbpScore(Paired):
    """What the NBP code calls LPIPS: frame 5 alone, colours in [0, 1]. Not comparable with the others."""

    name, label, higher_is_better = "lpips-nbp", "LPIPS (NBP's)", False
    build = NbpPerceptual

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> Paired:
        if protocol.condition_frames and not protocol.score_given:
            raise UserError(
                f"{cls.name} counts given frames too, which protocol {protocol.name} leaves out."
            )
        return super().for_protocol(protocol)

    def per_frame(self, measured: Measured) -> dict[str, list[float]]:
        """None: it is of one frame."""
        return {}


def _alone(metric: M) -> M:
    """A metric that leaves other processes alone: the harness joins what they measured itself."""
    metric.distributed_available_fn = lambda: False
    return metric


def _restore(metric: Metric, **state: Tensor) -> None:
    """Put a metric into the state in which it has seen all clips."""
    metric.reset()
    for name, value in state.items():
        setattr(metric, name, [value])
    metric._update_count = 1  # else it warns that it has seen none


def _resize(videos: Tensor, size: int) -> Tensor:
    """uint8 clips (B, T, H, W, 3) at another size: bilinear, half-pixel grid, not antialiased."""
    frames = rearrange(videos, "b t h w c -> (b t) c h w").float()
    small = F.interpolate(frames, (size, size), mode="bilinear", align_corners=False)
    levels = small.round().clamp(0, 255).to(torch.uint8)
    return rearrange(levels, "(b t) c h w -> b t h w c", b=len(videos))


def best_device() -> torch.device:
    """The GPU of this process, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
