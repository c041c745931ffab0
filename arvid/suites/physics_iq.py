"""Physics-IQ (arXiv:2501.09038): given frames, lengths and file names of its videos.

Facts are from google-deepmind/physics-IQ-benchmark at commit e457754 (README.md and code/): 66 scenes, filmed from
three sides, twice, for 8 seconds at 30 frames per second. A model gets the first 3 seconds (v2v, the conditioning
video) or the last frame of them (i2v, the switch frame). It makes 5 seconds at 8, 16, 24 or 30 frames per second for
each of the 198 videos of the first take. The benchmark's own code scores them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from arvid.errors import UserError
from arvid.suites.prompts import read_text

if TYPE_CHECKING:
    from arvid.data.clips import Frames

Given = Literal["i2v", "v2v"]
SECONDS = 5
"""Length of a scored video, in seconds."""
NUM_VIDEOS = 198
"""Videos of the first take; only these are generated."""
_FIRST_TAKE = "take-1"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A video of the first take."""

    id: str
    """Four digits. The names of its files begin with them."""
    text: str
    file: str
    """Name of the generated video."""

    def seed(self, run_seed: int = 0) -> int:
        """Seed of its video: the run's seed plus the number `id`."""
        return run_seed + int(self.id)


def load_scenes(path: Path) -> list[Scene]:
    """The scenes of descriptions.csv. Raises UserError with the reason if the file is not valid."""
    rows = csv.DictReader(io.StringIO(read_text(path, "Physics-IQ's descriptions.csv")), restval="")
    needed = {"scenario", "description", "generated_video_name"}
    if absent := needed - set(rows.fieldnames or ()):
        raise UserError(f"{path} has no column {', '.join(sorted(absent))}.")
    scenes = [
        Scene(id=row["scenario"][:4], text=row["description"], file=row["generated_video_name"])
        for row in rows
        if _FIRST_TAKE in row["scenario"]
    ]
    for scene in scenes:
        if not scene.id.isdecimal() or "/" in scene.file or not scene.file.startswith(scene.id):
            raise UserError(
                f"{path}: {scene.file!r} is not the name of a video of scene {scene.id}."
            )
    if not scenes:
        raise UserError(f"{path} has no scene of {_FIRST_TAKE}.")
    return scenes


def num_scored_frames(fps: int) -> int:
    """Number of frames of a video of exactly five seconds."""
    return SECONDS * fps


def given_frames(
    scene: Scene, data: Path, given: Given, *, fps: int, num_given: int, size: tuple[int, int]
) -> Frames:
    """The frames that a model continues, resized to `size`: uint8 (num_given, height, width, 3).

    i2v: the switch frame; `num_given` must be 1. v2v: the last `num_given` frames of the conditioning video at `fps`.
    Raises UserError if a file is missing or shorter.
    """
    from arvid.data.clips import resize_frames  # slow to import
    from arvid.data.video import read_video

    if given == "i2v":
        path = _one_file(data / "switch-frames", scene)
        return resize_frames(read_video(path, max_frames=1).frames, size)
    path = _one_file(_conditioning(data) / f"{fps}FPS", scene)
    frames = read_video(path, size=size).frames
    if len(frames) < num_given:
        raise UserError(
            f"{path} has {len(frames)} frames, fewer than the {num_given} given frames."
        )
    return frames[-num_given:]


def _conditioning(data: Path) -> Path:
    """Folder of the conditioning videos. The README and the download have different names for it."""
    named = data / "split-videos" / "conditioning-videos"
    return named if named.is_dir() else data / "split-videos" / "conditioning"


def _one_file(folder: Path, scene: Scene) -> Path:
    found = sorted(folder.glob(f"{scene.id}_*"))
    if len(found) != 1:
        raise UserError(
            f"{folder} has {len(found)} files of scene {scene.id}, not 1. Download Physics-IQ with its "
            "code/download_physics_iq_data.py, for the frame rate of the videos."
        )
    return found[0]


def scored_part(video: Frames, given: Given, *, fps: int, num_given: int) -> Frames:
    """The scored five seconds of a generated video.

    i2v: the first five seconds, with the given frame, as in the benchmark's README. v2v: the five seconds after the
    `num_given` given frames.
    """
    start = 0 if given == "i2v" else num_given
    part = video[start : start + num_scored_frames(fps)]
    assert len(part) == num_scored_frames(fps), "the model was asked for enough frames"
    return np.ascontiguousarray(part)


def num_generated_frames(
    given: Given, *, fps: int, num_given: int, stride: int, causal: bool
) -> int:
    """Smallest clip length that contains the scored part and that a tokenizer of this temporal stride can decode."""
    needed = num_scored_frames(fps) + (0 if given == "i2v" else num_given)
    rest = (needed - causal) % stride
    return needed + (stride - rest if rest else 0)


def require_all(scenes: Sequence[Scene]) -> None:
    """Raise UserError unless there are `NUM_VIDEOS` scenes, as the benchmark's code requires."""
    if len(scenes) != NUM_VIDEOS:
        raise UserError(
            f"Physics-IQ has {NUM_VIDEOS} videos, but descriptions.csv names {len(scenes)}."
        )
