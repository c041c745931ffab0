"""Change of generated clips from frame to frame: in pixels (flicker) and in position (motion)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arvid.contracts import Clip
from arvid.data.motion import motion_scores
from arvid.evaluation.records import MetricValue, standard_error
from arvid.evaluation.scores import Measured, Score


class _Changes(Score):
    """Mean over clips and pairs of neighbouring frames. Subclasses measure `changes` (B, T-1)."""

    metric_fields: ClassVar[dict[str, Any]]
    """Constant fields of the MetricValue: name, label, unit and so on."""

    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        (clips,) = self.per_clip(measured).values()
        return [
            MetricValue(
                **self.metric_fields,
                value=float(np.mean(clips)),
                spread=standard_error(clips),
                spread_kind="standard error",
                count=len(clips),
                protocol=protocol,
            )
        ]

    def frame_values(self, measured: Measured) -> dict[str, Float[np.ndarray, "b t"]]:
        """Change from the previous frame. The first frame gets the value of the second."""
        changes = measured["changes"]
        return {self.metric_fields["name"]: torch.cat([changes[:, :1], changes], dim=1).numpy()}

    def per_clip(self, measured: Measured) -> dict[str, list[float]]:
        return {self.metric_fields["name"]: measured["changes"].mean(1).tolist()}


class Flicker(_Changes):
    """Mean absolute change of pixels from frame to frame, in levels (0..255), as in VBench's temporal flickering.

    Real clips change too, and a still image has no change: compare with the rows of real clips and reconstructions.
    """

    metric_fields: ClassVar = {"name": "flicker", "label": "Flicker", "higher_is_better": False}

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        changes = generated.float().diff(dim=1).abs()
        return {"changes": changes.mean((2, 3, 4)).double().cpu()}


class Motion(_Changes):
    """Mean displacement of tracked corners in pixels per frame (`arvid.data.motion`).

    A substitute for VBench's dynamic degree, whose network needs larger frames. More is not always better: compare with
    the row of real clips.
    """

    metric_fields: ClassVar = {"name": "motion", "label": "Motion", "unit": "px/frame"}

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        pairs = [motion_scores(video) for video in generated.cpu().numpy()]
        return {"changes": torch.tensor(pairs, dtype=torch.float64)}
