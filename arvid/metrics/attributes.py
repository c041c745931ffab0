"""Attribute accuracy: does a generated sprite clip show the shape, colour and motion that were asked for?

A classifier trained on Sprites is the judge. It is not perfect: the accuracy of real clips is the ceiling, and
guessing the floor (`CHANCE`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from arvid.contracts import UserError
from arvid.metrics.sprites_net import ATTRIBUTES, SpritesNet, load_sprites_net
from arvid.metrics.videos import check_videos

MEAN = "attribute-accuracy"
NAMES = (MEAN, *(f"{name}-accuracy" for name in ATTRIBUTES))
"""Names of the metric's values."""

_CHANCES = [1 / len(values) for values in ATTRIBUTES.values()]
CHANCE = dict(zip(NAMES, (sum(_CHANCES) / len(_CHANCES), *_CHANCES), strict=True))
"""What guessing reaches, by name."""


class AttributeAccuracy(Metric):
    """Share of the attributes asked for that the clips show, in 0..1.

    Args:
        network: the judge; the embedded SpritesNet by default.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    hits: list[Tensor]
    """(B, 3): 1 where a clip shows its attribute, for the attributes in order."""

    def __init__(self, network: SpritesNet | None = None) -> None:
        super().__init__()
        self.network = (load_sprites_net() if network is None else network).eval()
        self.add_state("hits", default=[], dist_reduce_fx="cat")

    def update(self, videos: Tensor, attributes: Sequence[Mapping[str, str]]) -> None:
        """Judge clips (B, T, H, W, 3) by the attributes asked for: a mapping (shape, colour, motion) for each.

        Raises ValueError if there is not one for each clip, and UserError if it lacks an attribute or has an
        unknown value.
        """
        check_videos(videos)
        if len(attributes) != len(videos):
            raise ValueError(f"{len(videos)} clips, but attributes of {len(attributes)}.")
        for asked in attributes:
            _check_known(asked)
        seen = self.network.eval().classify(videos)
        pairs = zip(seen, attributes, strict=True)
        hits = [
            [float(found[name] == asked[name]) for name in ATTRIBUTES] for found, asked in pairs
        ]
        self.hits.append(torch.tensor(hits, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Mean over clips by name; `attribute-accuracy` is the mean of the other three."""
        return dict(zip(NAMES, self._columns().mean(0), strict=True))

    def standard_errors(self) -> dict[str, Tensor]:
        """Standard error of each mean over clips; nan for a single clip."""
        with self.sync_context():
            columns = self._columns()
        return dict(zip(NAMES, columns.std(0) / len(columns) ** 0.5, strict=True))

    def _columns(self) -> Tensor:
        """(clips, 4): the mean of each clip's hits, then the hits."""
        if not len(self.hits):
            raise ValueError("Attribute accuracy of no clips: update() was not called.")
        hits = dim_zero_cat(self.hits)
        return torch.cat([hits.mean(1, keepdim=True), hits], dim=1)


def _check_known(asked: Mapping[str, str]) -> None:
    for name, values in ATTRIBUTES.items():
        if asked.get(name) not in values:
            raise UserError(
                "Attribute accuracy is for sprites: "
                f"the clip's {name} must be one of {', '.join(values)}, not {asked.get(name)!r}."
            )
