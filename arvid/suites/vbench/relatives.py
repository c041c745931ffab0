"""VBench-I2V, VBench-Long and VBench-2.0: their prompts, numbers of videos, and rules of the totals.

Facts and constants come from the repository Vchitect/VBench at commit 45e79ec. Its own code scores all dimensions (see
`arvid.suites.vbench.external`).

- VBench-I2V (of VBench++, arXiv:2411.13503): vbench2_beta_i2v, and scripts/constant.py for the totals.
- VBench-Long (also of VBench++): vbench2_beta_long. Prompts, dimensions and totals are VBench's.
- VBench-2.0 (arXiv:2503.21755): the folder VBench-2.0, and its scripts/cal_final_score.py for the totals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from arvid.suites.vbench.aggregate import VBENCH, Rules, Scale
from arvid.suites.vbench.suite import SAMPLES


@dataclass(frozen=True, kw_only=True)
class Relative:
    """A benchmark of VBench's family."""

    name: str
    """Name of the command, of the folder in a row and of the record."""
    rules: Rules
    prompts: str
    """The list of prompts, relative to the repository."""
    root: str = "."
    """Folder of the repository in which its code runs."""
    samples: int = SAMPLES
    """Videos per prompt."""
    more_samples: Mapping[str, int] = field(default_factory=dict)
    """Dimension -> number of videos per prompt, where it is not `samples`."""
    name_length: int | None = None
    """Number of characters of the prompt in file names; None: all."""
    by_dimension: bool = False
    """Whether each dimension has its own folder of videos. A prompt then has separate videos for each dimension."""
    has_images: bool = False
    """Whether each prompt has an image. It is the first frame of the video."""

    def num_samples(self, dimension: str) -> int:
        """Number of videos per prompt of a dimension."""
        return self.more_samples.get(dimension, self.samples)


I2V = Relative(
    name="vbench-i2v",
    rules=Rules(
        title="VBench-I2V",
        dimensions={
            "camera_motion": Scale("i2v", weight=0.1),
            "i2v_subject": Scale("i2v", 0.1462),
            "i2v_background": Scale("i2v", 0.2615),
            "subject_consistency": Scale("quality", 0.1462),
            "background_consistency": Scale("quality", 0.2615),
            "motion_smoothness": Scale("quality", 0.706, 0.9975),
            "dynamic_degree": Scale("quality", weight=0.5),
            "aesthetic_quality": Scale("quality"),
            "imaging_quality": Scale("quality"),
        },
        groups={"quality": 1, "i2v": 1},
    ),
    prompts="vbench2_beta_i2v/vbench2_i2v_full_info.json",
    has_images=True,
)

LONG = Relative(
    name="vbench-long",
    rules=Rules(title="VBench-Long", dimensions=VBENCH.dimensions, groups=VBENCH.groups),
    prompts="vbench2_beta_long/VBench_full_info.json",
)


def _equal(group: str, *dimensions: str) -> dict[str, Scale]:
    """Dimensions of equal weight in a group, without normalisation."""
    return {name: Scale(group) for name in dimensions}


V2 = Relative(
    name="vbench-2",
    rules=Rules(
        title="VBench-2.0",
        dimensions={
            **_equal("creativity", "Diversity", "Composition"),
            **_equal("commonsense", "Motion_Rationality", "Instance_Preservation"),
            **_equal(
                "controllability",
                "Dynamic_Spatial_Relationship",
                "Dynamic_Attribute",
                "Motion_Order_Understanding",
                "Human_Interaction",
                "Complex_Landscape",
                "Complex_Plot",
                "Camera_Motion",
            ),
            **_equal("human_fidelity", "Human_Anatomy", "Human_Identity", "Human_Clothes"),
            **_equal("physics", "Mechanics", "Thermotics", "Material", "Multi-View_Consistency"),
        },
        groups=dict.fromkeys(
            ("creativity", "commonsense", "controllability", "human_fidelity", "physics"), 1
        ),
    ),
    prompts="VBench-2.0/vbench2/VBench2_full_info.json",
    root="VBench-2.0",
    samples=3,
    more_samples={"Diversity": 20},
    name_length=180,
    by_dimension=True,
)

RELATIVES = {relative.name: relative for relative in (I2V, LONG, V2)}
"""By name."""
