"""Whether generated clips show what was asked for."""

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
from arvid.evaluation.scores import Measured, Score, alone, restore
from arvid.metrics.attributes import AttributeAccuracy

if TYPE_CHECKING:
    from arvid.evaluation.protocols import Protocol

WINDOW = 8
"""Frames that are judged at once where accuracy is followed over time."""
KEPT = ("shape", "colour")
"""What is judged then, of the network's attributes the first."""


class Attributes(Score):
    """Share of the attributes asked for that the clips show, in percent."""

    def __init__(self) -> None:
        self.metric = alone(AttributeAccuracy())

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

    The judge sees the last frames up to the step's, `WINDOW` of them (at the first steps the first ones; a shorter
    clip, or an image, stands still at its end). So few do not tell a slow movement from none: motion is left out. The
    row of the reconstruction, or of real clips, says how much can be reached.

    Args:
        frames_per_step: of the protocol.
    """

    def __init__(self, frames_per_step: int) -> None:
        self.frames_per_step = frames_per_step
        self.metric = alone(AttributeAccuracy())

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> AttributesOverTime:
        return cls(protocol.frames_per_step)

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        self.metric.reset()
        asked = [clip.attributes for clip in clips]
        missing = max(WINDOW - generated.shape[1], 0)
        still = generated[:, -1:].expand(-1, missing, -1, -1, -1)
        padded = torch.cat([generated, still], dim=1)
        for end in range(self.frames_per_step, generated.shape[1] + 1, self.frames_per_step):
            end = max(end, WINDOW)
            self.metric.update(padded[:, end - WINDOW : end], asked)
        hits = torch.stack(list(self.metric.hits), dim=1)  # (B, steps, attributes)
        return {"hits": 100 * hits[..., : len(KEPT)].contiguous()}

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
            for name, found in zip(KEPT, means.T, strict=True)
        ]

    def frame_values(self, measured: Measured) -> dict[str, Float[np.ndarray, "b t"]]:
        frames = measured["hits"].repeat_interleave(self.frames_per_step, dim=1).numpy()
        return {f"{name}-shown": frames[..., i] for i, name in enumerate(KEPT)}
