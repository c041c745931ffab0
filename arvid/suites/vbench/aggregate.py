"""Totals of VBench and its relatives from the scores of their dimensions.

A score s is normalised to weight · (s − min) / (max − min), without clipping. A group's score is the sum over its
dimensions, divided by the sum of their weights. The total is the weighted mean of the groups. A dimension without a
score counts as a raw 0, as in VBench's scripts. arvid also lists it, and marks the total as incomplete.

The constants of VBench are those of `scripts/constant.py` in Vchitect/VBench at commit 45e79ec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Group, range and weight of a dimension in the totals."""

    group: str
    min: float = 0.0
    max: float = 1.0
    weight: float = 1.0

    def normalised(self, score: float) -> float:
        """A raw score, scaled so that `min` becomes 0 and `max` becomes `weight`."""
        return self.weight * (score - self.min) / (self.max - self.min)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a benchmark computes its totals from its dimensions."""

    title: str
    """Name of the benchmark, for messages and headings."""
    dimensions: Mapping[str, Scale]
    """All dimensions, in the leaderboard's order."""
    groups: Mapping[str, float]
    """Group -> weight in the total."""


VBENCH = Rules(
    title="VBench",
    dimensions={
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
    },
    groups={"quality": 4, "semantic": 1},
)
DIMENSIONS = VBENCH.dimensions
"""VBench's sixteen dimensions."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Totals of a benchmark, as fractions (0 to 1)."""

    groups: Mapping[str, float]
    total: float
    missing: tuple[str, ...]
    """Dimensions without a score; they count as raw 0."""

    @property
    def complete(self) -> bool:
        """Whether all dimensions have a score."""
        return not self.missing


def aggregate(scores: Mapping[str, float], rules: Rules = VBENCH) -> Totals:
    """Totals of raw scores (dimension -> fraction). Raises ValueError for an unknown dimension."""
    unknown = scores.keys() - rules.dimensions.keys()
    if unknown:
        raise ValueError(f"not dimensions of {rules.title}: {', '.join(sorted(unknown))}")
    groups = {group: _group(scores, group, rules) for group in rules.groups}
    weighted = sum(weight * groups[group] for group, weight in rules.groups.items())
    return Totals(
        groups=groups,
        total=weighted / sum(rules.groups.values()),
        missing=tuple(name for name in rules.dimensions if name not in scores),
    )


def _group(scores: Mapping[str, float], group: str, rules: Rules) -> float:
    members = {name: scale for name, scale in rules.dimensions.items() if scale.group == group}
    total = sum(scale.normalised(scores.get(name, 0.0)) for name, scale in members.items())
    return total / sum(scale.weight for scale in members.values())
