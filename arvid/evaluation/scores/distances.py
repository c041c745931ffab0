"""Distances between the sets of real and generated clips: FVD and variants."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from arvid.contracts import Clip, UserError
from arvid.evaluation.real_statistics import ONLY_MOMENTS
from arvid.evaluation.records import MetricValue
from arvid.evaluation.scores import Measured, Score
from arvid.metrics.bootstrap import (
    INTERVAL_DRAWS,
    STD_DRAWS,
    bootstrap_distances,
    bootstrap_interval,
)
from arvid.metrics.efficientnet_features import efficientnet_features
from arvid.metrics.frechet import FeatureNetwork, frechet_distance_from_features
from arvid.metrics.fvd import fvd_features
from arvid.metrics.inference import full_precision
from arvid.metrics.jedi import jedi_features
from arvid.metrics.kernel_distance import jedi_distance, kernel_video_distance
from arvid.metrics.pixel_features import PixelFeatures
from arvid.metrics.sample_count import sample_count_curve
from arvid.metrics.sprites_net import load_sprites_net
from arvid.metrics.videomae import videomae_features
from arvid.processes import best_device
from arvid.tensor_files import sha256_tensors

if TYPE_CHECKING:
    from arvid.evaluation.protocols import Protocol


class Features:
    """A feature network on the best device. It keeps the features of the last clips for other metrics."""

    def __init__(self, network: FeatureNetwork) -> None:
        self.network = network.eval().to(best_device())
        self._last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, videos: Tensor) -> Tensor:
        """Features (B, d) of uint8 clips (B, T, H, W, 3). Raises UserError if they are not finite."""
        if self._last is None or self._last[0] is not videos:
            device = best_device()
            with full_precision(device.type):
                features = self.network(videos.to(device)).float().cpu()
            if not torch.isfinite(features).all():
                raise UserError(f"{self.network.name} gave features that are not finite.")
            self._last = videos, features
        return self._last[1]

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Class, name and weights of the network, as plain data: the features depend only on these and the clips."""
        cls = type(self.network)
        return {
            "network": self.network.name,
            "class": f"{cls.__module__}.{cls.__qualname__}",
            "weights": sha256_tensors(self.network.state_dict()),
        }


@cache
def _shared(build: Callable[..., FeatureNetwork], *arguments: str) -> Features:
    """A feature network, loaded once for all metrics and rows."""
    return Features(build(*arguments))


class Distance(Score):
    """Distance between the sets of real and generated clips over the features of a network."""

    name: ClassVar[str]
    label: ClassVar[str]
    build: ClassVar[Callable[..., FeatureNetwork]]
    """Builds the network from `arguments`."""

    def __init__(self, features: Features, *, ddof: int = 1) -> None:
        self.features = features
        self.ddof = ddof

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> Self:
        return cls(_shared(cls.build, *cls.arguments(protocol)), ddof=protocol.ddof)

    @classmethod
    def arguments(cls, protocol: Protocol) -> tuple[str, ...]:
        """Arguments of `build` from the protocol; none by default."""
        return ()

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        return {"generated": self.features(generated)}

    def measure_real(self, real: Tensor) -> Measured:
        return {"real": self.features(real)}

    def of_trajectories(self, measured: Sequence[Measured]) -> Measured:
        """All generated clips."""
        return {**measured[0], "generated": torch.cat([found["generated"] for found in measured])}

    def real_identity(self) -> Mapping[str, Any]:
        return self.features.identity

    @property
    def num_features(self) -> int:
        return self.features.network.num_features

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
        if ONLY_MOMENTS in measured:  # these rows are not clips, so they cannot be resampled
            return [value]
        return [self.with_uncertainty(value, measured["real"], measured["generated"])]

    @abstractmethod
    def distance(self, real: Tensor, generated: Tensor) -> float:
        """Distance of two sets of features (N, d) and (M, d)."""

    def with_uncertainty(self, value: MetricValue, real: Tensor, generated: Tensor) -> MetricValue:
        """The value with its standard deviation and interval. Default: without."""
        return value


class Frechet(Distance):
    """Fréchet distance with a bootstrap standard deviation and interval."""

    of_moments = True

    def distance(self, real: Tensor, generated: Tensor) -> float:
        return float(frechet_distance_from_features(real, generated, self.ddof))

    def with_uncertainty(self, value: MetricValue, real: Tensor, generated: Tensor) -> MetricValue:
        draws = bootstrap_distances(real, generated, num=INTERVAL_DRAWS, ddof=self.ddof)
        found = bootstrap_interval(value.value, draws)
        return dataclasses.replace(
            value,
            spread=float(draws[:STD_DRAWS].std()),
            spread_kind="bootstrap",
            interval=(found.low, found.high),
        )


class FdSprites(Frechet):
    """Fréchet distance over SpritesNet's features; not FVD."""

    name, label = "fd-sprites", "FD (sprites)"
    build = load_sprites_net


class FdPixels(Frechet):
    """Fréchet distance over mean colours of coarse cells; not FVD."""

    name, label = "fd-pixels", "FD (pixels)"
    build = PixelFeatures


class FdEfficientNet(Frechet):
    """Fréchet distance over the content of frames and its changes, as an ImageNet network sees them; not FVD."""

    name, label = "fd-efficientnet", "FD (EfficientNet)"
    build = efficientnet_features


class FvdVideoMAE(Frechet):
    """FVD over VideoMAE features of 16 frames, as in cd-fvd (which uses ddof 0)."""

    name, label = "fvd-videomae", "FVD (VideoMAE)"
    build = videomae_features


class Fvd(Frechet):
    """FVD: Fréchet distance over I3D logits, with the protocol's preprocessing."""

    name, label = "fvd", "FVD"
    build = fvd_features

    @classmethod
    def arguments(cls, protocol: Protocol) -> tuple[str, ...]:
        return _preprocessing(protocol, cls.name)


class Rfvd(Fvd):
    """FVD between real clips and their reconstructions. Much lower than the FVD of generated clips."""

    name, label = "rfvd", "rFVD"

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> Self:
        if protocol.task != "reconstruction":
            raise UserError(
                f"rfvd is a metric of reconstructions; protocol {protocol.name} is a {protocol.task}. Use fvd."
            )
        return super().for_protocol(protocol)


class Kvd(Distance):
    """KVD: TATS's kernel distance over I3D logits. Unbiased, so it may be negative."""

    name, label = "kvd", "KVD"
    build = fvd_features

    @classmethod
    def arguments(cls, protocol: Protocol) -> tuple[str, ...]:
        return _preprocessing(protocol, cls.name)

    def distance(self, real: Tensor, generated: Tensor) -> float:
        return float(kernel_video_distance(real, generated))


class Jedi(Distance):
    """JEDi: kernel distance over V-JEPA features of 16 frames."""

    name, label = "jedi", "JEDi"
    build = jedi_features

    def distance(self, real: Tensor, generated: Tensor) -> float:
        return float(jedi_distance(real, generated))


class FvdLimit(Fvd):
    """FVD extrapolated to infinitely many clips, by a line in 1 / N through the distances of subsets."""

    name, label = "fvd-limit", "FVD (N → ∞)"
    of_moments = False

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
    """FVD of consecutive windows of 16 frames: shows the drift of long clips."""

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

    def real_identity(self) -> Mapping[str, Any]:
        return {"window": self.WINDOW, **self.windows.features.identity}

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


def _preprocessing(protocol: Protocol, metric: str) -> tuple[str]:
    if protocol.preprocessing is None:
        raise UserError(f"{metric} needs a preprocessing, but protocol {protocol.name} names none.")
    return (protocol.preprocessing,)
