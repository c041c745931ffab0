"""How much generated clips move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arvid.contracts import Clip
from arvid.data.motion import motion_scores
from arvid.evaluation.records import MetricValue, standard_error
from arvid.evaluation.scores import Measured, Score


class Motion(Score):
    """Mean displacement of tracked corners in pixels per frame (`arvid.data.motion`).

    It stands in for VBench's dynamic degree, whose network takes no small frames. More is not better by itself: compare
    it with the row of real clips.
    """

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        pairs = [motion_scores(video) for video in generated.cpu().numpy()]
        return {"pairs": torch.tensor(pairs, dtype=torch.float64)}

    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        clips = measured["pairs"].mean(1).tolist()
        return [
            MetricValue(
                name="motion",
                label="Motion",
                value=float(np.mean(clips)),
                spread=standard_error(clips),
                spread_kind="standard error",
                count=len(clips),
                unit="px/frame",
                protocol=protocol,
            )
        ]

    def frame_values(self, measured: Measured) -> dict[str, Float[np.ndarray, "b t"]]:
        """Displacement from the frame before; the first frame has that of the second."""
        pairs = measured["pairs"]
        return {"motion": torch.cat([pairs[:, :1], pairs], dim=1).numpy()}

    def per_clip(self, measured: Measured) -> dict[str, list[float]]:
        return {"motion": measured["pairs"].mean(1).tolist()}
