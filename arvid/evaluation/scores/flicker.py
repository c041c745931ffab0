"""How much generated clips flicker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arvid.contracts import Clip
from arvid.evaluation.records import MetricValue, standard_error
from arvid.evaluation.scores import Measured, Score


class Flicker(Score):
    """Mean absolute change of a pixel from frame to frame, in levels of 255, as VBench's temporal flickering has it.

    Real clips change too, and a picture that stands still has none: compare it with the rows of real clips and of
    reconstructions.
    """

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        frames = generated.float()
        return {"changes": frames.diff(dim=1).abs().mean((2, 3, 4)).double().cpu()}  # (B, T-1)

    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        clips = measured["changes"].mean(1).tolist()
        return [
            MetricValue(
                name="flicker",
                label="Flicker",
                value=float(np.mean(clips)),
                spread=standard_error(clips),
                spread_kind="standard error",
                count=len(clips),
                higher_is_better=False,
                protocol=protocol,
            )
        ]

    def frame_values(self, measured: Measured) -> dict[str, Float[np.ndarray, "b t"]]:
        """Change from the frame before; the first frame has that of the second."""
        changes = measured["changes"]
        return {"flicker": torch.cat([changes[:, :1], changes], dim=1).numpy()}

    def per_clip(self, measured: Measured) -> dict[str, list[float]]:
        return {"flicker": measured["changes"].mean(1).tolist()}
