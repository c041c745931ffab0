"""Accuracy of the requested attributes in generated clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from arvid.contracts import Clip
from arvid.evaluation.records import MetricValue, standard_error
from arvid.evaluation.scores import Measured, Score, restore, without_sync
from arvid.metrics.attributes import AttributeAccuracy

if TYPE_CHECKING:
    from arvid.evaluation.protocols import Protocol

WINDOW = 8
"""Frames per judgement when accuracy is measured over time."""
OVER_TIME = ("shape", "colour")
"""Attributes that are judged over time: the first ones of the network's attributes."""


class Attributes(Score):
    """Share of the requested attributes that the clips show, in percent."""

    def __init__(self) -> None:
        self.metric = without_sync(AttributeAccuracy())

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        self.metric.reset()
        self.metric.update(generated, [clip.attributes for clip in clips])
        return {"hits": dim_zero_cat(self.metric.hits)}

    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        restore(self.metric, hits=measured["hits"])
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


class AttributesOverTime(Score):
    """Share of the clips, in percent, that still show shape and colour at each autoregressive step of a prediction.

    The classifier sees the last `WINDOW` frames up to the step's end. At the first steps it sees the first `WINDOW`
    frames; in shorter clips the last frame is repeated. Motion is left out: few frames do not separate slow motion from
    none. The rows of reconstructions or real clips give the upper bound.

    Args:
        frames_per_step: of the protocol.
    """

    def __init__(self, frames_per_step: int) -> None:
        self.frames_per_step = frames_per_step
        self.metric = without_sync(AttributeAccuracy())

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> AttributesOverTime:
        return cls(protocol.frames_per_step)

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        self.metric.reset()
        requested = [clip.attributes for clip in clips]
        missing = max(WINDOW - generated.shape[1], 0)
        padding = generated[:, -1:].expand(-1, missing, -1, -1, -1)
        padded = torch.cat([generated, padding], dim=1)
        for end in range(self.frames_per_step, generated.shape[1] + 1, self.frames_per_step):
            end = max(end, WINDOW)  # the first steps share the first window
            self.metric.update(padded[:, end - WINDOW : end], requested)
        hits = torch.stack(list(self.metric.hits), dim=1)  # (B, steps, attributes)
        return {"hits": 100 * hits[..., : len(OVER_TIME)].contiguous()}

    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        means = measured["hits"].mean(1)
        return [
            MetricValue(
                name=f"{name}-shown",
                label=f"{name.capitalize()} shown",
                value=float(found.mean()),
                spread=standard_error(found.tolist()),
                spread_kind="standard error",
                count=len(found),
                unit="%",
                feature_network=self.metric.network.name,
                feature_sha256=self.metric.network.sha256,
                protocol=protocol,
            )
            for name, found in zip(OVER_TIME, means.T, strict=True)
        ]

    def frame_values(self, measured: Measured) -> dict[str, Float[np.ndarray, "b t"]]:
        frames = measured["hits"].repeat_interleave(self.frames_per_step, dim=1).numpy()
        return {f"{name}-shown": frames[..., i] for i, name in enumerate(OVER_TIME)}
