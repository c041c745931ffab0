"""Fréchet distance between two sets of clips: the squared 2-Wasserstein distance of their features' Gaussians.

    FD = |mu_R - mu_G|^2 + tr S_R + tr S_G - 2 tr (S_R S_G)^(1/2)

With factors F'F = S of the covariances (for a set of features: the centred rows over sqrt(n - ddof)) the last
trace is the nuclear norm of F_R F_G'. It is computed so throughout, in float64: exact however few clips there
are, never complex, and without a constant on the diagonal. FVD (arXiv:1812.01717) is this distance over 400
logits of a Kinetics I3D; a distance over other features goes by another name.

The distance is biased upward by about C/n: compare only numbers of equal clip counts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from arvid.metrics.bootstrap import SPREAD_DRAWS, bootstrap_spread
from arvid.metrics.videos import check_num_clips, check_videos


class FeatureNetwork(nn.Module, ABC):
    """uint8 video (B, T, H, W, 3) -> features (B, num_features), preprocessing included."""

    name: str
    """Short name, written beside every number that comes of it. Networks of one name and equal weights give equal
    features: their features of real clips are kept under both (see `arvid.evaluation.real_measurements`)."""
    num_features: int
    sha256: str | None = None
    """Hash of the file the weights came from; None for a network without weights."""

    @abstractmethod
    def forward(self, videos: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b d"]: ...


class FrechetDistance(Metric):
    """Fréchet distance between real and generated clips over the features of `network`.

    `update` takes clips of either kind in any order; `compute` gives a float64 scalar. Under several processes
    the states are joined, and the value is the same for any number of them (drop a distributed sampler's
    duplicates beforehand).

    Args:
        network: the feature network; it is put in evaluation mode.
        ddof: degrees of freedom taken from the clip count in the covariance: 1 as TF-GAN, 0 as StyleGAN-V.
        keep_features: keep every clip's features: needed for `bootstrap` and `features`. Otherwise the sums of
            their moments are kept, which take the same memory however many clips come.
        reference: vector (num_features,) subtracted before the moments are summed; the origin by default. Only
            matters without `keep_features`, for features whose mean is over 1e4 of their deviations.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    reference: Tensor
    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(
        self,
        network: FeatureNetwork,
        *,
        ddof: int = 1,
        keep_features: bool = True,
        reference: Float[Tensor, " d"] | None = None,
    ) -> None:
        super().__init__()
        self.network = network.eval()
        self.ddof = ddof
        self.keep_features = keep_features
        zeros = torch.zeros(network.num_features, dtype=torch.float64)
        self.register_buffer("reference", zeros if reference is None else reference.double())
        for kind in ("real", "fake"):
            self._add_states(kind, network.num_features)

    def _add_states(self, kind: str, num_features: int) -> None:
        if self.keep_features:
            self.add_state(f"{kind}_features", default=[], dist_reduce_fx="cat")
            return
        zeros = torch.zeros(num_features, num_features, dtype=torch.float64)
        self.add_state(
            f"{kind}_count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum"
        )
        self.add_state(f"{kind}_sum", default=zeros[0].clone(), dist_reduce_fx="sum")
        self.add_state(f"{kind}_products", default=zeros, dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, videos: Tensor, real: bool) -> None:
        """Add clips (B, T, H, W, 3) of the real (or else the generated) set.

        Raises ValueError for what is not uint8 video and for features that are not finite.
        """
        check_videos(videos)
        features = self.network.eval()(videos).double()
        if not torch.isfinite(features).all():
            raise ValueError(f"{self.network.name} gave features that are not finite.")
        self._add("real" if real else "fake", features)

    def _add(self, kind: str, features: Float64[Tensor, "b d"]) -> None:
        if self.keep_features:
            getattr(self, f"{kind}_features").append(features)
            return
        centred = features - self.reference
        setattr(self, f"{kind}_count", getattr(self, f"{kind}_count") + len(features))
        setattr(self, f"{kind}_sum", getattr(self, f"{kind}_sum") + centred.sum(0))
        setattr(self, f"{kind}_products", getattr(self, f"{kind}_products") + centred.T @ centred)

    def compute(self) -> Float64[Tensor, ""]:
        """The distance. Raises ValueError if a set has too few clips for a covariance."""
        if self.keep_features:
            return frechet_distance_from_features(*self._joined(), ddof=self.ddof)
        return frechet_distance_from_moments(
            *self._moments("real"),
            *self._moments("fake"),
            counts=(self._count("real"), self._count("fake")),
        )

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Join the states of all processes; one that saw no clips takes part with none."""
        if self.keep_features:
            for features in (self.real_features, self.fake_features):
                if not len(features):
                    features.append(self.reference.new_zeros(0, self.network.num_features))
        super().sync(*args, **kwargs)

    def bootstrap(self, num: int = SPREAD_DRAWS, seed: int = 0) -> float:
        """Spread of the distance: `bootstrap_spread` over the kept features."""
        if not self.keep_features:
            raise ValueError("The bootstrap needs FrechetDistance(keep_features=True).")
        return bootstrap_spread(*self.features(), num=num, seed=seed, ddof=self.ddof)

    def features(self) -> tuple[Float64[Tensor, "n d"], Float64[Tensor, "m d"]]:
        """Kept features of the real and of the generated clips, of all processes.

        Their order depends on their values alone, so that what draws from them at random does the same for any
        number of processes and any size of batch.
        """
        if not self.keep_features:
            raise ValueError("Features are kept by FrechetDistance(keep_features=True) alone.")
        with self.sync_context(should_unsync=not self._is_synced, should_sync=not self._is_synced):
            real, fake = self._joined()
            return _in_order(real), _in_order(fake)

    def _joined(self) -> tuple[Tensor, Tensor]:
        empty = self.reference.new_zeros(0, self.network.num_features)
        real, fake = (x if len(x) else [empty] for x in (self.real_features, self.fake_features))
        return dim_zero_cat(real), dim_zero_cat(fake)

    def _count(self, kind: str) -> int:
        return int(getattr(self, f"{kind}_count"))

    def _moments(self, kind: str) -> tuple[Tensor, Tensor]:
        count = self._count(kind)
        check_num_clips(count, self.ddof)
        mean = getattr(self, f"{kind}_sum") / count
        products = getattr(self, f"{kind}_products") - count * torch.outer(mean, mean)
        return mean + self.reference, products / (count - self.ddof)


def frechet_distance_from_features(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], ddof: int = 1
) -> Float64[Tensor, ""]:
    """Fréchet distance of two sets of features; n and m may differ and may be smaller than d.

    Raises ValueError if a set has `ddof` rows or fewer.
    """
    factors = []
    for features in (a, b):
        check_num_clips(len(features), ddof)
        features = features.double()
        factors.append((features - features.mean(0)) / math.sqrt(len(features) - ddof))
    means = (a.double().mean(0), b.double().mean(0))
    return _distance(means[0], _shrink(factors[0]), means[1], _shrink(factors[1]))


def frechet_distance_from_moments(
    mean_a: Float[Tensor, " d"],
    covariance_a: Float[Tensor, "d d"],
    mean_b: Float[Tensor, " d"],
    covariance_b: Float[Tensor, "d d"],
    *,
    counts: tuple[int, int] | None = None,
) -> Float64[Tensor, ""]:
    """Fréchet distance of two Gaussians. Covariances may be singular; what rounding made negative counts as 0.

    `counts` says how many clips each covariance was made from, which bounds its rank: eigenvalues beyond it are
    rounding errors, whose square roots would show (1e-6 of the value with fewer clips than features).
    """
    ranks = (None, None) if counts is None else (counts[0] - 1, counts[1] - 1)
    factors = (_factor(covariance_a.double(), ranks[0]), _factor(covariance_b.double(), ranks[1]))
    return _distance(mean_a.double(), factors[0], mean_b.double(), factors[1])


def _distance(mean_a: Tensor, factor_a: Tensor, mean_b: Tensor, factor_b: Tensor) -> Tensor:
    """Distance of two Gaussians, the covariances given by factors F (k, d) with F'F = S."""
    trace = factor_a.square().sum() + factor_b.square().sum()
    cross = torch.linalg.svdvals(factor_a @ factor_b.T).sum()
    # Never below 0 but for rounding.
    return ((mean_a - mean_b).square().sum() + trace - 2 * cross).clamp(min=0)


def _shrink(factor: Tensor) -> Tensor:
    """A factor with the same F'F of at most d rows, so that many clips cost no more than d of them."""
    rows, columns = factor.shape
    return torch.linalg.qr(factor, mode="r").R if rows > columns else factor


def _factor(covariance: Tensor, rank: int | None) -> Tensor:
    """A factor F (at most `rank`, d) of a covariance, F'F = S, by its leading eigenvectors."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)  # ascending
    skip = 0 if rank is None else max(len(values) - rank, 0)
    return values[skip:].clamp(min=0).sqrt()[:, None] * vectors.T[skip:]


def _in_order(features: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    """The rows sorted by their place along a fixed direction."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(features.shape[1], generator=generator, dtype=features.dtype)
    return features[(features @ direction.to(features)).argsort()]
