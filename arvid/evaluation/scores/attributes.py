"""Whether generated clips show what was asked for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from arvid.contracts import Clip
from arvid.evaluation.records import MetricValue
from arvid.evaluation.scores import Measured, Score, alone, restore
from arvid.metrics.attributes import AttributeAccuracy


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
