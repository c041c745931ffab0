"""Metrics under a protocol: one interface with two steps.

`measure` takes a batch of clips and gives tensors with one entry per clip. `values` computes the metric values from
the measurements of all clips. The measurements are stored batch by batch. So an interrupted evaluation can continue,
and the result is the same for any number of processes.

A new metric is a subclass of `Score` in one file, listed in the registry or as an entry point of the group
`arvid.metrics`. Built-in metrics: `distances` between sets of clips, `paired` comparisons frame by frame, `attributes`
that a clip shows, `changes` from frame to frame, comparisons with the `training` set.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from arvid import registry
from arvid.contracts import Clip, UserError, VideoDataset
from arvid.evaluation.real_statistics import RealStatistics
from arvid.evaluation.records import MetricValue

if TYPE_CHECKING:
    from arvid.evaluation.protocols import Protocol

M = TypeVar("M", bound=Metric)
Measured = Mapping[str, Tensor]
"""Name -> measured tensor. The first axis of each tensor is the clip."""


class Score(ABC):
    """One metric under a protocol."""

    uses_training: ClassVar[bool] = False
    """Whether it compares with clips of the training set."""
    of_moments: ClassVar[bool] = False
    """Whether it uses only the mean and covariance of the real clips' features."""

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> Score:
        """The metric with the protocol's options. Default: no options.

        Raises UserError if the protocol lacks something that the metric needs, or if weights are missing.
        """
        return cls()

    @abstractmethod
    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        """Measure generated clips, one entry per clip. The entry must not depend on the other clips of the batch.

        Args:
            generated: uint8 (B, T, H, W, 3), the frames that the protocol scores.
            real: uint8 (B, T, H, W, 3), the real clips that gave the conditions.
            clips: clips with the requested captions and attributes.
        """

    def measure_real(self, real: Tensor) -> Measured:
        """Measure real clips, uint8 (B, T, H, W, 3), for a metric between sets. Default: nothing."""
        return {}

    def measure_training(self, videos: Tensor, clips: Sequence[Clip]) -> Measured:
        """Measure clips of the training set, `videos` uint8 (B, T, H, W, 3). Default: nothing.

        Their names must begin with `training`. They are cached by `real_identity` as well.
        """
        return {}

    def of_trajectories(self, measured: Sequence[Measured]) -> Measured:
        """One measurement from those of several clips for each real clip (see `Protocol.trajectories`).

        Metrics that define it can be used with several. The others are refused before anything is generated.
        """
        raise NotImplementedError

    def missing(self, dataset: VideoDataset, training: VideoDataset | None) -> str | None:
        """What the real clips or the training set lack for the metric, as a sentence part; by default nothing (None).

        `training` is None if it is unknown, or holds tokens instead of frames.
        """
        return None

    def nearest_training(self, measured: Measured) -> list[int]:
        """For each generated clip the nearest measured training clip; empty by default. The page shows them."""
        return []

    def real_identity(self) -> Mapping[str, Any] | None:
        """Cache key of `measure_real`: everything it depends on besides the clips, as plain data.

        Metrics with equal keys share measurements, for all rows (see `arvid.evaluation.real_measurements`). None, the
        default: no cache.
        """
        return None

    @property
    def num_features(self) -> int | None:
        """Width of the features that `measure_real` returns as `real`. None, the default: it returns no features."""
        return None

    @abstractmethod
    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        """Metric values from the measurements of all clips. `protocol` is the protocol's name."""

    def frame_values(self, measured: Measured) -> dict[str, Float[np.ndarray, "b t"]]:
        """Values of each scored frame of each clip, by name; empty by default."""
        return {}

    def per_clip(self, measured: Measured) -> dict[str, list[float]]:
        """Values of each clip, by name, if the metric is their mean; empty by default."""
        return {}


def scores_for(protocol: Protocol) -> dict[str, Score]:
    """The protocol's metrics, by name, without its optional ones. Raises UserError as `for_protocol` does."""
    return {n: registry.get("metrics", n).for_protocol(protocol) for n in protocol.metrics}


def optional_scores(
    protocol: Protocol, dataset: VideoDataset, training: VideoDataset | None
) -> tuple[dict[str, Score], tuple[str, ...]]:
    """The optional metrics that can be used, by name, and a note for each of the others."""
    found, notes = {}, []
    for name in protocol.optional_metrics:
        try:
            score: Score = registry.get("metrics", name).for_protocol(protocol)
        except UserError as error:
            notes.append(left_out(name, str(error)))
            continue
        if lack := lacking(score, dataset, training):
            notes.append(left_out(name, lack))
        else:
            found[name] = score
    return found, tuple(notes)


def lacking(score: Score, dataset: VideoDataset, training: VideoDataset | None) -> str | None:
    """What the real clips or the training set lack for a metric, as a clause of a message. None: nothing."""
    lack = dataset.lacks(score) if isinstance(dataset, RealStatistics) else None
    return lack or score.missing(dataset, training)


def left_out(metric: str, reason: str) -> str:
    """Note about a metric that is left out, without the advice where to get its weights."""
    return f"No {metric}: {re.split(r' (?:By hand: )?Get it from ', reason)[0]}"


def without_sync(metric: M) -> M:
    """Disable the metric's synchronisation between processes: the harness joins their measurements."""
    metric.distributed_available_fn = lambda: False
    return metric


def restore(metric: Metric, **state: Tensor) -> None:
    """Set a torchmetrics metric to the state after all updates."""
    metric.reset()
    for name, value in state.items():
        setattr(metric, name, [value])
    metric._update_count = 1  # without it, compute() warns about a missing update()
