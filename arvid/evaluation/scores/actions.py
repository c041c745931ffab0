"""Whether generated clips do what the actions say that they were given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arvid.contracts import Clip, UserError
from arvid.evaluation.records import MetricValue, standard_error
from arvid.evaluation.scores import Measured, Score
from arvid.metrics.actions import obeyed
from arvid.nn.conditions import condition

if TYPE_CHECKING:
    from arvid.evaluation.protocols import Protocol

NAME = "action-accuracy"


class Actions(Score):
    """Share of the frames, in percent, whose shape has moved as the action says (see `arvid.metrics.actions`).

    Args:
        first_frame: number of the first frame that the protocol scores.
    """

    def __init__(self, first_frame: int = 0) -> None:
        self.first_frame = first_frame

    @classmethod
    def for_protocol(cls, protocol: Protocol) -> Actions:
        return cls(protocol.scored.start)

    def measure(self, generated: Tensor, real: Tensor, clips: Sequence[Clip]) -> Measured:
        asked = np.stack([_actions(clip) for clip in clips])[:, self.first_frame :]
        found = obeyed(generated, torch.from_numpy(asked[:, : generated.shape[1]]))
        return {"hits": 100 * found.double().cpu()}

    def values(self, measured: Measured, protocol: str) -> list[MetricValue]:
        (clips,) = self.per_clip(measured).values()
        return [
            MetricValue(
                name=NAME,
                label="Action accuracy",
                value=float(np.mean(clips)),
                spread=standard_error(clips),
                spread_kind="standard error",
                count=len(clips),
                unit="%",
                protocol=protocol,
            )
        ]

    def frame_values(self, measured: Measured) -> dict[str, Float[np.ndarray, "b t"]]:
        """Accuracy at each frame; the first frame, which nothing led to, has that of the second."""
        hits = measured["hits"]
        return {NAME: torch.cat([hits[:, :1], hits], dim=1).numpy()}

    def per_clip(self, measured: Measured) -> dict[str, list[float]]:
        return {NAME: measured["hits"].mean(1).tolist()}


def _actions(clip: Clip) -> np.ndarray:
    if "actions" not in clip.conditions:
        raise UserError(
            "Action accuracy is for clips of keyboard sprites: these clips have no actions."
        )
    return condition("actions").of_clip(clip)
