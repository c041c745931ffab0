"""What a protocol measures: metrics behind one interface, fed batch by batch with generated and real clips.

A new metric is a subclass of `Score` in one file, named in the registry or by an entry point of the group
`arvid.metrics`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from arvid.contracts import Clip
from arvid.evaluation.records import MetricValue
from arvid.metrics.attributes import AttributeAccuracy
from arvid.metrics.frechet import FeatureNetwork, FrechetDistance
from arvid.metrics.paired import PairedMetric, Psnr, Ssim
from arvid.metrics.perceptual import Lpips
from arvid.metrics.pixel_features import PixelFeatures
from arvid.metrics.sprites_net import load_sprites_net


class Score(ABC):
    """One metric over all clips of a protocol. Built without arguments, once per row."""

    @abstractmethod
    def update(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> None:
        """Add clips: uint8 (B, T, H, W, 3) generated, real, and the clips whose attributes were asked for."""

    @abstractmethod
    def values(self, protocol: str) -> list[MetricValue]:
        """The numbers, once all clips were added."""

    def per_frame(self) -> dict[str, list[float]]:
        """Curves over the frames that were scored, by name; none by default."""
        return {}


class _Frechet(Score):
    """Fréchet distance between the real clips and the generated ones; spread by bootstrap."""

    name: ClassVar[str]
    label: ClassVar[str]

    def __init__(self, network: FeatureNetwork) -> None:
        self.network = network
        self.metric = FrechetDistance(network)

    def update(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> None:
        self.metric.update(generated, real=False)
        self.metric.update(real, real=True)

    def values(self, protocol: str) -> list[MetricValue]:
        return [
            MetricValue(
                name=self.name,
                label=self.label,
                value=float(self.metric.compute()),
                spread=self.metric.bootstrap(),
                count=sum(len(batch) for batch in self.metric.fake_features),
                higher_is_better=False,
                feature_network=self.network.name,
                feature_sha256=self.network.sha256,
                protocol=protocol,
            )
        ]


class FdSprites(_Frechet):
    """Fréchet distance over the embedded sprites classifier; not an FVD."""

    name = "fd-sprites"
    label = "FD (sprites)"

    def __init__(self) -> None:
        super().__init__(load_sprites_net())


class FdPixels(_Frechet):
    """Fréchet distance over the mean colours of coarse cells; not an FVD."""

    name = "fd-pixels"
    label = "FD (pixels)"

    def __init__(self) -> None:
        super().__init__(PixelFeatures())


class Attributes(Score):
    """Share of the attributes asked for that the clips show, in percent."""

    def __init__(self) -> None:
        self.metric = AttributeAccuracy()

    def update(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> None:
        self.metric.update(generated, [clip.attributes for clip in clips])

    def values(self, protocol: str) -> list[MetricValue]:
        errors = self.metric.standard_errors()
        count = sum(len(batch) for batch in self.metric.hits)
        return [
            MetricValue(
                name=name,
                label=name.removesuffix("-accuracy").capitalize() + " accuracy",
                value=100 * float(value),
                spread=100 * float(errors[name]),
                count=count,
                unit="%",
                feature_network=self.metric.network.name,
                feature_sha256=self.metric.network.sha256,
                protocol=protocol,
            )
            for name, value in self.metric.compute().items()
        ]


class _Paired(Score):
    """A frame-by-frame comparison of each generated clip with its real one."""

    name: ClassVar[str]
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True

    def __init__(self, metric: PairedMetric) -> None:
        self.metric = metric

    def update(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> None:
        self.metric.update(generated, real)

    def values(self, protocol: str) -> list[MetricValue]:
        score = self.metric.compute()
        return [
            MetricValue(
                name=self.name,
                label=self.name.upper(),
                value=score.value,
                spread=score.standard_error,
                count=score.num_clips,
                higher_is_better=self.higher_is_better,
                unit=self.unit,
                protocol=protocol,
            )
        ]

    def per_frame(self) -> dict[str, list[float]]:
        return {self.name: self.metric.compute().per_frame}


class PsnrScore(_Paired):
    """Mean over frames and clips of each frame's PSNR."""

    name = "psnr"
    unit = "dB"

    def __init__(self) -> None:
        super().__init__(Psnr())


class SsimScore(_Paired):
    """Mean over frames and clips of SSIM (11 x 11 Gaussian window)."""

    name = "ssim"

    def __init__(self) -> None:
        super().__init__(Ssim())


class LpipsScore(_Paired):
    """Mean over frames and clips of LPIPS v0.1 with AlexNet, whose weights must be there."""

    name = "lpips"
    higher_is_better = False

    def __init__(self) -> None:
        super().__init__(Lpips("alex"))
