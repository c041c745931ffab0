"""VBench's quality, semantic and total score from the sixteen dimensions (constants of its `scripts/constant.py`).

A score s is normalised to weight · (s − min) / (max − min), without clipping. Quality and Semantic are the sums over
their group divided by the sum of its weights. Total = (4 · Quality + Semantic) / 5. A dimension without a score counts
as a raw 0, as in VBench's script. Here it is also listed, and the total is marked as incomplete.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Group = Literal["quality", "semantic"]
GROUP_WEIGHTS: dict[Group, float] = {"quality": 4, "semantic": 1}


@dataclass(frozen=True)
class Scale:
    """Group, range and weight of a dimension in the totals."""

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
"""All sixteen dimensions, in the leaderboard's order."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """VBench's totals, as fractions (0 to 1)."""

    quality: float
    semantic: float
    total: float
    missing: tuple[str, ...]
    """Dimensions without a score; they count as raw 0."""

    @property
    def complete(self) -> bool:
        return not self.missing


def aggregate(scores: Mapping[str, float]) -> Totals:
    """Totals of raw scores (dimension -> fraction). Raises ValueError for an unknown dimension."""
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
