"""Replace clips whose files become unreadable during a training.

Files get damaged, deleted and overwritten in the weeks of a training. Batches must keep their size, so an unreadable
clip is replaced by another clip. The choice depends on its index alone, so a resumed run gets the same batches. Each
file is named once in the log, and too many unreadable clips are an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data.video import VideoError

logger = logging.getLogger(__name__)

MAX_IN_A_ROW = 10
"""Number of replacements that are tried. If none can be read, the fault is the disk's, not a file's."""
MAX_UNREADABLE = 0.5
"""Largest share of a set's clips that may be unreadable."""


@dataclass(frozen=True)
class Unreadable:
    """A clip that could not be read, with the reason."""

    index: int
    file: str
    reason: str


def read_clip(dataset: VideoDataset, index: int) -> tuple[Clip, tuple[Unreadable, ...]]:
    """The clip at an index, or its replacement if its file is unreadable; and the unreadable clips.

    Raises the first VideoError if no clip can be read, and UserError as the dataset does.
    """
    failed: list[Unreadable] = []
    first: VideoError | None = None
    for candidate in _candidates(index, len(dataset)):
        try:
            return dataset[candidate], tuple(failed)
        except VideoError as error:
            first = first or error
            failed.append(Unreadable(candidate, str(error.path), error.reason))
    assert first is not None
    raise first


def _candidates(index: int, num_clips: int) -> Iterator[int]:
    yield index
    others = np.random.default_rng([index]).permutation(num_clips)
    yield from (int(i) for i in others[:MAX_IN_A_ROW] if i != index)


@dataclass
class Tally:
    """Counts the unreadable clips of a set, in one process and its data workers."""

    num_clips: int
    """Clips in the set."""
    max_unreadable: float = MAX_UNREADABLE
    """Share of unreadable clips above which training stops."""
    clips: set[int] = field(default_factory=set)
    files: set[str] = field(default_factory=set)

    def add(self, failed: Iterable[Unreadable]) -> None:
        """Count clips, and log new files. Raises UserError for too many unreadable clips."""
        for one in failed:
            self.clips.add(one.index)
            if one.file in self.files:
                continue
            self.files.add(one.file)
            logger.warning(
                "%s can no longer be read: %s. Other clips replace its clips (%d files so far).",
                one.file,
                one.reason,
                len(self.files),
            )
        if len(self.clips) > self.max_unreadable * self.num_clips:
            raise UserError(
                f"{len(self.clips)} of {self.num_clips} clips cannot be read, from {len(self.files)} files "
                f"({', '.join(sorted(self.files)[:5])}). Check the disk, then resume the training from its last "
                "checkpoint."
            )
