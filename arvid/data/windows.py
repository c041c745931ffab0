"""Windows of another dataset's clips: a model trained on them can be scored on their known continuations."""

from __future__ import annotations

import dataclasses

import numpy as np

from arvid.contracts import Clip, VideoDataset
from arvid.data.stand_ins import read_clip
from arvid.files import sha256_json
from arvid.nn.conditions import cut_all
from arvid.ranges import at_least, between


class Windows(VideoDataset):
    """One window of consecutive frames from each clip, at a random position, with the conditions of these frames. All
    else is the clip's.

    Args:
        dataset: the clips.
        num_frames: frames of a window.
        seed: seed of the positions; window i is a pure function of (seed, i).

    Raises UserError for windows that are longer than the clips.
    """

    def __init__(self, dataset: VideoDataset, *, num_frames: int, seed: int = 0) -> None:
        between(1, len(read_clip(dataset, 0)[0].video)).require(
            "a window's ", num_frames=num_frames
        )
        at_least(0).require(seed=seed)
        self.dataset = dataset
        self.num_frames = num_frames
        self.seed = seed
        self.classes = dataset.classes
        self.value_names = dataset.value_names
        self.has_captions = dataset.has_captions

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Clip:
        clip = self.dataset[index]
        rng = np.random.default_rng([self.seed, index])
        start = int(rng.integers(len(clip.video) - self.num_frames + 1))
        window = clip.video[start : start + self.num_frames]
        return dataclasses.replace(
            clip,
            video=window,
            name=f"{clip.name}@{start}",
            conditions=cut_all(clip.conditions, start, self.num_frames),
        )

    def fingerprint(self) -> str:
        return self._hash(self.dataset.fingerprint())

    def earlier_fingerprint(self) -> str | None:
        earlier = self.dataset.earlier_fingerprint()
        return None if earlier is None else self._hash(earlier)

    def _hash(self, fingerprint: str) -> str:
        return sha256_json(["windows", fingerprint, self.num_frames, self.seed])
