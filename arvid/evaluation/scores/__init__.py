"""What a protocol measures: metrics behind one interface, in two steps.

`measure` looks at a batch of clips and gives tensors with one entry for each clip; `values` makes the numbers from
those of all clips. What was measured is kept on disk batch by batch, so an evaluation goes on where it was
interrupted, and its result is the same for any number of processes.

A new metric is a subclass of `Score` in one file, named in the registry or by an entry point of the group
`arvid.metrics`. The built-in ones are the modules beside: `distances` between sets of clips, `paired` comparisons
frame by frame, `attributes` that a clip shows, `changes` from frame to frame.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from arvid import registry
from arvid.contracts import Clip
from arvid.evaluation.records import MetricValue

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

    def real_identity(self) -> Mapping[str, Any] | None:
        """What `measure_real` depends on besides the clips, as plain data: metrics for which it is equal measure the
        same, once for all rows (see `arvid.evaluation.real_measurements`).

        None, as by default: each row measures anew.
        """
        return None

    @abstractmethod
    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        """The numbers, from what was measured on all clips."""

    def frame_values(self, measured: Measured) -> dict[str, Float[np.ndarray, "b t"]]:
        """One number for each frame of each clip that was scored, by name; none by default."""
        return {}

    def per_clip(self, measured: Measured) -> dict[str, list[float]]:
        """One number for each clip, by name, where the metric is their mean; none by default."""
        return {}


def scores_for(protocol: Protocol) -> dict[str, Score]:
    """The protocol's metrics, by name."""
    return {n: registry.get("metrics", n).for_protocol(protocol) for n in protocol.metrics}


def alone(metric: M) -> M:
    """A metric that leaves other processes alone: the harness joins what they measured itself."""
    metric.distributed_available_fn = lambda: False
    return metric


def restore(metric: Metric, **state: Tensor) -> None:
    """Put a metric into the state in which it has seen all clips."""
    metric.reset()
    for name, value in state.items():
        setattr(metric, name, [value])
    metric._update_count = 1  # else it warns that it has seen none
