"""Attribute accuracy: share of the requested attributes (shape, colour, motion) that generated sprite clips show.

A classifier trained on Sprites judges the clips and makes errors itself. So the accuracy on real clips is the upper
bound. Guessing is the lower bound (`CHANCE`).
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
"""Accuracy of random guessing, by name of the value."""


class AttributeAccuracy(Metric):
    """Share of the requested attributes that the clips show, in 0..1.

    Args:
        network: classifier that judges the clips. Default: the SpritesNet that arvid includes.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    hits: list[Tensor]
    """(B, 3) of each batch: 1 where the clip shows the requested value. Columns: the keys of `ATTRIBUTES`."""

    def __init__(self, network: SpritesNet | None = None) -> None:
        super().__init__()
        self.network = (load_sprites_net() if network is None else network).eval()
        self.add_state("hits", default=[], dist_reduce_fx="cat")

    def update(self, videos: Tensor, attributes: Sequence[Mapping[str, str]]) -> None:
        """Judge clips (B, T, H, W, 3) against the requested `attributes`, one mapping (shape, colour, motion) per clip.

        Raises ValueError if the numbers of clips and mappings differ, and UserError for a missing attribute or an
        unknown value.
        """
        check_videos(videos)
        if len(attributes) != len(videos):
            raise ValueError(f"{len(videos)} clips, but attributes of {len(attributes)}.")
        for requested in attributes:
            _check_known(requested)
        predicted = self.network.eval().classify(videos)
        pairs = zip(predicted, attributes, strict=True)
        hits = [[float(p[name] == r[name]) for name in ATTRIBUTES] for p, r in pairs]
        self.hits.append(torch.tensor(hits, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Mean over clips, by name of the value. `attribute-accuracy` is the mean of the other three."""
        return dict(zip(NAMES, self._columns().mean(0), strict=True))

    def standard_errors(self) -> dict[str, Tensor]:
        """Standard error of each value, over clips; nan for a single clip."""
        with self.sync_context():
            columns = self._columns()
        return dict(zip(NAMES, columns.std(0) / len(columns) ** 0.5, strict=True))

    def _columns(self) -> Tensor:
        """Values of each clip (clips, 4): the mean of its hits, then the three hits."""
        if not len(self.hits):
            raise ValueError("Attribute accuracy of no clips: update() was not called.")
        hits = dim_zero_cat(self.hits)
        return torch.cat([hits.mean(1, keepdim=True), hits], dim=1)


def _check_known(requested: Mapping[str, str]) -> None:
    for name, values in ATTRIBUTES.items():
        if requested.get(name) not in values:
            raise UserError(
                "Attribute accuracy is for sprites: "
                f"the clip's {name} must be one of {', '.join(values)}, not {requested.get(name)!r}."
            )
