"""How much a generated clip changes from frame to frame: its pixels (flicker), and where things are (motion)."""

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
    """The mean over clips and pairs of frames; subclasses measure `changes` (B, T-1)."""

    told: ClassVar[dict[str, Any]]
    """Name, label and the like of the value."""

    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        (clips,) = self.per_clip(measured).values()
        return [
            MetricValue(
                **self.told,
                value=float(np.mean(clips)),
                spread=standard_error(clips),
                spread_kind="standard error",
                count=len(clips),
                protocol=protocol,
            )
        ]

    def frame_values(self, measured: Measured) -> dict[str, Float[np.ndarray, "b t"]]:
        """Change from the frame before; the first frame has that of the second."""
        changes = measured["changes"]
        return {self.told["name"]: torch.cat([changes[:, :1], changes], dim=1).numpy()}

    def per_clip(self, measured: Measured) -> dict[str, list[float]]:
        return {self.told["name"]: measured["changes"].mean(1).tolist()}


class Flicker(_Changes):
    """Mean absolute change of a pixel from frame to frame, in levels of 255, as VBench's temporal flickering has it.

    Real clips change too, and a picture that stands still has none: compare it with the rows of real clips and of
    reconstructions.
    """

    told: ClassVar = {"name": "flicker", "label": "Flicker", "higher_is_better": False}

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        changes = generated.float().diff(dim=1).abs()
        return {"changes": changes.mean((2, 3, 4)).double().cpu()}


class Motion(_Changes):
    """Mean displacement of tracked corners in pixels per frame (`arvid.data.motion`).

    It stands in for VBench's dynamic degree, whose network takes no small frames. More is not better by itself: compare
    it with the row of real clips.
    """

    told: ClassVar = {"name": "motion", "label": "Motion", "unit": "px/frame"}

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        pairs = [motion_scores(video) for video in generated.cpu().numpy()]
        return {"changes": torch.tensor(pairs, dtype=torch.float64)}
