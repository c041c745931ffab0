"""The training set's clips that metrics compare with: which ones, and their measurements.

Measurements are cached like those of real clips, so the feature network processes each training clip once for all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from arvid.contracts import VideoDataset
from arvid.data.loading import load_batches
from arvid.data.video import Frames
from arvid.evaluation.parts import Parts
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.real_measurements import RealMeasurements
from arvid.evaluation.scores import Measured, Score
from arvid.progress import Bar

MAX_CLIPS = 1024
"""Number of training clips that are measured at most. From a larger set they are chosen at random, seed 0."""


class TrainingClips:
    """Training clips for the metrics of an evaluation.

    Args:
        dataset: the training set.
        protocol: of the evaluation.
        scores: the metrics of the evaluation by name; those that need no training clips are left out.
        code: identity of the measuring code (see `arvid.evaluation.code_identity`).
    """

    def __init__(
        self, dataset: VideoDataset, protocol: Protocol, scores: Mapping[str, Score], code: str
    ) -> None:
        self.dataset = dataset
        self.scored = protocol.scored
        self.scores = {name: score for name, score in scores.items() if score.uses_training}
        self.indices = chosen_clips(len(dataset))
        self.batches = {
            f"training-{i:05d}": indices
            for i, indices in enumerate(protocol.in_batches([self.indices]))
        }
        """Name of a batch -> dataset indices of its clips."""
        self._kept = RealMeasurements(dataset, protocol.scored, code)

    def measure(self, names: Sequence[str], parts: Parts, progress: bool) -> None:
        """Measure batches and write them to disk. Clips with cached measurements are not decoded."""
        missing = [name for name in names if not self._take_kept(name, parts)]
        loaded = load_batches(self.dataset, [self.batches[name] for name in missing])
        bar = Bar(loaded, "training clips", len(missing), unit="batch", hidden=not progress)
        for name, clips in zip(missing, bar, strict=True):
            videos = torch.from_numpy(np.stack([clip.video[self.scored] for clip in clips]))
            measured = {
                n: self._kept.measure_training(s, self.batches[name], videos, clips)
                for n, s in self.scores.items()
            }
            parts.write(name, measured, 0.0)

    def video(self, position: int) -> Frames:
        """All frames of the measured clip at a position."""
        return self.dataset[self.indices[position]].video

    def _take_kept(self, name: str, parts: Parts) -> bool:
        measured: dict[str, Measured] = {}
        for n, score in self.scores.items():
            found = self._kept.read_training(score, self.batches[name])
            if found is None:
                return False
            measured[n] = found
        parts.write(name, measured, 0.0)
        return True


def chosen_clips(size: int) -> list[int]:
    """Indices of the training clips that are measured, of a set of `size` clips."""
    if size <= MAX_CLIPS:
        return list(range(size))
    return sorted(np.random.default_rng(0).permutation(size)[:MAX_CLIPS].tolist())
