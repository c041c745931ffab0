"""Comparisons with the training set: do generated clips show their class, and are they copies of training clips?

Both use the clip features of `fd-efficientnet` (arvid.metrics.efficientnet_features).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from arvid.contracts import Clip, VideoDataset
from arvid.evaluation.records import MetricValue, standard_error
from arvid.evaluation.scores import Measured, Score
from arvid.evaluation.scores.distances import FdEfficientNet, Features
from arvid.evaluation.training_clips import MAX_CLIPS
from arvid.metrics.ridge import RidgeClassifier

if TYPE_CHECKING:
    from arvid.evaluation.protocols import Protocol

UNKNOWN = -1
"""Label of a clip without a class."""


class _WithTraining(Score):
    """Features of generated and of training clips."""

    uses_training = True

    def __init__(self, features: Features) -> None:
        self.features = features

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> Self:
        return cls(FdEfficientNet.for_protocol(protocol).features)

    def missing(self, dataset: VideoDataset, training: VideoDataset | None) -> str | None:
        return "the frames of the training clips are not known" if training is None else None

    def real_identity(self) -> Mapping[str, Any]:
        return self.features.identity

    def measure_real(self, real: Tensor) -> Measured:
        return {"real": self.features(real)}

    def measure_training(self, videos: Tensor, clips: Sequence[Clip]) -> Measured:
        return {"training": self.features(videos), "training_labels": _labels(clips)}

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        return {"generated": self.features(generated), "labels": _labels(clips)}

    def _value(
        self, clips: Sequence[float], protocol: str, *, name: str, label: str, **fields: Any
    ) -> MetricValue:
        """Mean over clips with its standard error."""
        return MetricValue(
            name=name,
            label=label,
            value=sum(clips) / len(clips),
            spread=standard_error(clips),
            spread_kind="standard error",
            count=len(clips),
            feature_network=self.features.network.name,
            feature_sha256=self.features.network.sha256,
            protocol=protocol,
            **fields,
        )


class ClassAccuracy(_WithTraining):
    """Share of the clips, in percent, in which a classifier sees the requested class.

    The classifier is a ridge regression on the features of training clips. It errs on real clips too: the row of real
    clips shows how often it is right, and chance is 100 / number of classes.
    """

    def missing(self, dataset: VideoDataset, training: VideoDataset | None) -> str | None:
        if training is None:
            return super().missing(dataset, training)
        if len(dataset.classes) < 2:
            return "the clips have no classes"
        same = training.classes == dataset.classes
        return None if same else "the training clips have other classes"

    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        hits = self.per_clip(measured)["class-accuracy"]
        return [
            self._value(hits, protocol, name="class-accuracy", label="Class accuracy", unit="%")
        ]

    def per_clip(self, measured: Measured) -> dict[str, list[float]]:
        labels = measured["training_labels"]
        known = labels != UNKNOWN
        classify = RidgeClassifier(measured["training"][known], labels[known])
        hits = classify(measured["generated"]) == measured["labels"]
        return {"class-accuracy": (100.0 * hits).tolist()}


class NearestTraining(_WithTraining):
    """Distance of the clips to their nearest training clip, relative to that of real clips.

    It is the mean over clips of the distance between features, divided by the same mean for the real clips of the
    protocol. Copies of training clips are at 0. Clips as new as real ones are at 1. Clips that resemble nothing are
    above 1, so more is not always better. Every training clip is compared: larger training sets are refused.
    """

    metric_fields: ClassVar[dict[str, Any]] = {
        "name": "nearest-training",
        "label": "Distance to training (real: 1)",
        "higher_is_better": None,
    }

    def missing(self, dataset: VideoDataset, training: VideoDataset | None) -> str | None:
        if training is None or len(training) <= MAX_CLIPS:
            return super().missing(dataset, training)
        return f"it compares with up to {MAX_CLIPS} training clips, but there are {len(training)}"

    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        clips = self.per_clip(measured)["nearest-training"]
        return [self._value(clips, protocol, **self.metric_fields)]

    def per_clip(self, measured: Measured) -> dict[str, list[float]]:
        real = _distances(measured["real"], measured["training"]).amin(1).mean()
        found = _distances(measured["generated"], measured["training"]).amin(1)
        return {"nearest-training": (found / real.clamp(min=1e-12)).tolist()}

    def nearest_training(self, measured: Measured) -> list[int]:
        return _distances(measured["generated"], measured["training"]).argmin(1).tolist()


def _labels(clips: Sequence[Clip]) -> Tensor:
    return torch.tensor([UNKNOWN if clip.label is None else clip.label for clip in clips])


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (N, M) of features, in float64."""
    return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist")
