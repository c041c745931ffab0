"""Draws the videos of the suite: resumable, sharded over processes, the same for any number of them.

Every video is drawn alone, with a seed that depends on the run's seed, the prompt and the index and on nothing else.
A file beside the folder of videos says what they were drawn from; another model, seed or prompt list cannot be mixed
in. The folder itself holds videos only: VBench takes its first entry for the pattern of all.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from arvid.contracts import SamplingOptions, UserError
from arvid.data.video import VideoError, probe_video, write_video
from arvid.evaluation.vbench.suite import Take
from arvid.files import write_json
from arvid.sampling.sample import Conditions, sample
from arvid.training.generator_module import GeneratorModule

VideoSampler = Callable[[str, int], UInt8[np.ndarray, "t h w 3"]]
"""Text and seed to one video. The same text and seed give the same video."""


class CheckpointSampler:
    """Text to video by a generator of arvid.

    Args:
        model: see `arvid.training.generator_module.load_generator`.
        num_frames: frames per video; as trained by default.
        motion: motion score in pixels per frame, where the model was trained with it; unknown by default.
        options: how tokens are drawn; the model's own by default.

    Raises UserError for a model that takes no text, and for a motion score that it was not trained with.
    """

    def __init__(
        self,
        model: GeneratorModule,
        *,
        num_frames: int | None = None,
        motion: float | None = None,
        options: SamplingOptions | None = None,
    ) -> None:
        spec = model.conditioner.spec
        if spec.text_dim is None:
            raise UserError("This model was trained without captions: it cannot follow prompts.")
        if motion is not None and not spec.motion:
            raise UserError("A motion score was given, but this model was trained without it.")
        self.model = model
        self.num_frames = num_frames
        self.motion = math.nan if motion is None else motion
        self.options = options or model.sampling

    def __call__(self, text: str, seed: int) -> UInt8[np.ndarray, "t h w 3"]:
        conditions = Conditions(num_clips=1, captions=[text], labels=[-1], motion=[self.motion])
        return sample(
            self.model,
            conditions,
            num_frames=self.num_frames,
            options=self.options,
            seed=seed,
            progress=False,
        )[0]


def take_seed(take: Take, seed: int = 0) -> int:
    """Seed of one video: 63 bits of a hash of the run's seed, the suite's text and the index."""
    digest = hashlib.sha256(f"{seed}\0{take.prompt.text}\0{take.index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def sample_suite(
    takes: Sequence[Take],
    sampler: VideoSampler,
    folder: Path,
    *,
    texts: Mapping[str, str] | None = None,
    fps: float = 8.0,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> int:
    """Draw the videos that are not there yet, or cannot be read, and return how many that were.

    Args:
        takes: see `arvid.evaluation.vbench.suite.takes`.
        sampler: draws them.
        folder: of the videos, and of nothing else.
        texts: rewritten prompts by the suite's texts, which stay the files' names.
        fps: of the files. VBench's scores depend on it: dynamic degree looks at about 8 frames a second.
        seed: of the run.
        shard: index of this process and their number: it draws every n-th video.
        progress: show a bar over the videos.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = 0
    mine = takes[shard[0] :: shard[1]]
    for take in tqdm(mine, desc="vbench videos", disable=not progress, leave=False):
        path = folder / take.file
        if not _is_readable(path):
            text = take.prompt.text if texts is None else texts[take.prompt.text]
            write_video(path, sampler(text, take_seed(take, seed)), fps)
            drawn += 1
    return drawn


def claim(manifest: Path, description: Mapping[str, Any]) -> None:
    """Write down what the videos are drawn from. Raises UserError where the file says something else already."""
    wanted = json.loads(json.dumps(description))
    found = read_manifest(manifest)
    if found is None:
        write_json(manifest, wanted)
    elif found != wanted:
        unlike = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        raise UserError(
            f"{manifest.parent} holds videos of another sampling ({', '.join(unlike)} differ, "
            f"see {manifest.name}). Use another folder."
        )


def read_manifest(path: Path) -> dict[str, Any] | None:
    """What videos were drawn from; None for videos from elsewhere. Raises UserError if the file is damaged."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}). Sample into another folder.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged (not a JSON object). Sample into another folder.")
    return found


def _is_readable(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        probe_video(path)
    except VideoError:
        return False
    return True
