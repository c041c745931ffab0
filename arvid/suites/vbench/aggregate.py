"""From sixteen scores to VBench's quality, semantic and total score (constants of its `scripts/constant.py`).

A score s becomes weight · (s − min) / (max − min), without clipping. Quality and Semantic are the sums over their
groups divided by the groups' weights, and Total = (4 · Quality + Semantic) / 5. A dimension without a score counts
as a raw 0, as VBench's own script has it; here it is also named, and the total is not complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Group = Literal["quality", "semantic"]
GROUP_WEIGHTS: dict[Group, float] = {"quality": 4, "semantic": 1}


@dataclass(frozen=True)
class Scale:
    """How a dimension enters the totals."""

    group: Group
    min: float = 0.0
    max: float = 1.0
    weight: float = 1.0

    def normalised(self, score: float) -> float:
        return self.weight * (score - self.min) / (self.max - self.min)


DIMENSIONS: dict[str, Scale] = {
    "subject_consistency": Scale("quality", 0.1462),
    "background_consistency": Scale("quality", 0.2615),
    "temporal_flickering": Scale("quality", 0.6293),
    "motion_smoothness": Scale("quality", 0.706, 0.9975),
    "dynamic_degree": Scale("quality", weight=0.5),
    "aesthetic_quality": Scale("quality"),
    "imaging_quality": Scale("quality"),
    "object_class": Scale("semantic"),
    "multiple_objects": Scale("semantic"),
    "human_action": Scale("semantic"),
    "color": Scale("semantic"),
    "spatial_relationship": Scale("semantic"),
    "scene": Scale("semantic", 0.0, 0.8222),
    "appearance_style": Scale("semantic", 0.0009, 0.2855),
    "temporal_style": Scale("semantic", 0.0, 0.364),
    "overall_consistency": Scale("semantic", 0.0, 0.364),
}
"""All sixteen, in the leaderboard's order."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """VBench's totals, as fractions."""

    quality: float
    semantic: float
    total: float
    missing: tuple[str, ...]
    """Dimensions without a score, which counted as raw 0."""

    @property
    def complete(self) -> bool:
        return not self.missing


def aggregate(scores: Mapping[str, float]) -> Totals:
    """Totals of raw scores (fractions by dimension). Raises ValueError for a name that is no dimension."""
    unknown = scores.keys() - DIMENSIONS.keys()
    if unknown:
        raise ValueError(f"not dimensions of VBench: {', '.join(sorted(unknown))}")
    quality, semantic = (_group(scores, group) for group in GROUP_WEIGHTS)
    weighted = GROUP_WEIGHTS["quality"] * quality + GROUP_WEIGHTS["semantic"] * semantic
    return Totals(
        quality=quality,
        semantic=semantic,
        total=weighted / sum(GROUP_WEIGHTS.values()),
        missing=tuple(name for name in DIMENSIONS if name not in scores),
    )


def _group(scores: Mapping[str, float], group: Group) -> float:
    members = {name: scale for name, scale in DIMENSIONS.items() if scale.group == group}
    total = sum(scale.normalised(scores.get(name, 0.0)) for name, scale in members.items())
    return total / sum(scale.weight for scale in members.values())
