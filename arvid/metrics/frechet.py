"""Fréchet distance between two sets of clips: the squared 2-Wasserstein distance of Gaussians fitted to their features.

    FD = |mu_R - mu_G|^2 + tr S_R + tr S_G - 2 tr (S_R S_G)^(1/2)

The last trace is the nuclear norm of F_R F_G', where F'F = S. (For a set of features, F is the centred rows over
sqrt(n - ddof).) This form is used throughout, in float64. It is exact for any number of clips, never complex, and
needs no constant on the diagonal. FVD (arXiv:1812.01717) is this distance over 400 logits of a Kinetics I3D. A distance
over other features has another name.

The distance has an upward bias of about C/n: compare only values of equal clip counts.
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

from arvid.metrics.bootstrap import STD_DRAWS, bootstrap_std
from arvid.metrics.videos import check_num_clips, check_videos


class FeatureNetwork(nn.Module, ABC):
    """uint8 video (B, T, H, W, 3) -> features (B, num_features), preprocessing included."""

    name: str
    """Short name, written into every record. Networks with the same name and the same weights must give the same
    features: name and weights are the cache key of real clips' features (see `arvid.evaluation.real_measurements`)."""
    num_features: int
    sha256: str | None = None
    """SHA-256 of the weights file; None for a network without weights."""

    @abstractmethod
    def forward(self, videos: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b d"]: ...


class FrechetDistance(Metric):
    """Fréchet distance between real and generated clips over the features of `network`.

    `update` takes real and generated clips in any order. `compute` gives a float64 scalar. States of several processes
    are joined: the value is the same for any number of processes (remove a distributed sampler's duplicates first).

    Args:
        network: the feature network; it is put in evaluation mode.
        ddof: subtracted from the clip count in the covariance: 1 as TF-GAN, 0 as StyleGAN-V.
        keep_features: keep the features of every clip, as `bootstrap_std` and `features` need. Otherwise only sums of
            moments are kept, in constant memory.
        reference: vector (num_features,) subtracted before the moments are summed; zeros by default. Needed only
            without `keep_features`, for features whose mean exceeds 1e4 standard deviations.
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
        """Add clips (B, T, H, W, 3) to the real set (`real`) or to the generated set.

        Raises ValueError if they are not uint8 video or their features are not finite.
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
        """Join the states of all processes. A process without clips contributes an empty tensor: all must gather."""
        if self.keep_features:
            for features in (self.real_features, self.fake_features):
                if not len(features):
                    features.append(self.reference.new_zeros(0, self.network.num_features))
        super().sync(*args, **kwargs)

    def bootstrap_std(self, num: int = STD_DRAWS, seed: int = 0) -> float:
        """Standard deviation of the distance over bootstrap resamples of the kept features."""
        if not self.keep_features:
            raise ValueError("The bootstrap needs FrechetDistance(keep_features=True).")
        return bootstrap_std(*self.features(), num=num, seed=seed, ddof=self.ddof)

    def features(self) -> tuple[Float64[Tensor, "n d"], Float64[Tensor, "m d"]]:
        """Kept features of the real and of the generated clips, of all processes.

        The rows are sorted by value, so that random draws from them are the same for any number of processes and any
        batch size.
        """
        if not self.keep_features:
            raise ValueError("Only FrechetDistance(keep_features=True) keeps features.")
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
        # sum of (x - mean)(x - mean)' = sum of x x' - n mean mean'; cancels digits for large means (see `reference`)
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
    """Fréchet distance of two Gaussians. Covariances may be singular; negative eigenvalues count as 0.

    `counts` are the numbers of clips behind the covariances. They bound the ranks: eigenvalues beyond the rank are
    rounding errors, and their square roots would change the value (by 1e-6 with fewer clips than features).
    """
    # the mean takes one degree of freedom: n clips give rank n - 1
    ranks = (None, None) if counts is None else (counts[0] - 1, counts[1] - 1)
    factors = (_factor(covariance_a.double(), ranks[0]), _factor(covariance_b.double(), ranks[1]))
    return _distance(mean_a.double(), factors[0], mean_b.double(), factors[1])


def _distance(mean_a: Tensor, factor_a: Tensor, mean_b: Tensor, factor_b: Tensor) -> Tensor:
    """Distance of two Gaussians from factors F (k, d) of their covariances: F'F = S."""
    # tr (S_a S_b)^(1/2): the eigenvalues of S_a S_b are the squared singular values of F_a F_b'.
    trace = factor_a.square().sum() + factor_b.square().sum()  # tr F'F
    cross = torch.linalg.svdvals(factor_a @ factor_b.T).sum()  # nuclear norm: tr (S_a S_b)^(1/2)
    # Rounding may give a negative value.
    return ((mean_a - mean_b).square().sum() + trace - 2 * cross).clamp(min=0)


def _shrink(factor: Tensor) -> Tensor:
    """Factor with the same F'F and at most d rows: makes the products of many clips cheap."""
    rows, columns = factor.shape
    return torch.linalg.qr(factor, mode="r").R if rows > columns else factor


def _factor(covariance: Tensor, rank: int | None) -> Tensor:
    """Factor F (at most `rank`, d) of a covariance from its leading eigenvectors: F'F = S."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)  # ascending
    skip = 0 if rank is None else max(len(values) - rank, 0)
    return values[skip:].clamp(min=0).sqrt()[:, None] * vectors.T[skip:]


def _in_order(features: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    """The rows sorted by their projection on a fixed random direction."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(features.shape[1], generator=generator, dtype=features.dtype)
    return features[(features @ direction.to(features)).argsort()]
