"""What becomes of clips whose files can no longer be read while a training goes on: others stand in for them.

Files get damaged, deleted and overwritten in the weeks that a training takes. Batches keep their size, so a clip that
cannot be read is replaced by another one, which depends on its index alone: a run that goes on gets the same batches.
Each file is named once, and too many unreadable clips are an error.
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
"""So many clips are tried in the place of one: if none can be read, the disk is gone and not a file."""
MAX_UNREADABLE = 0.5
"""Share of a set's clips that may be unreadable."""


@dataclass(frozen=True)
class Unreadable:
    """A clip that could not be read, and why."""

    index: int
    file: str
    reason: str


def read_clip(dataset: VideoDataset, index: int) -> tuple[Clip, tuple[Unreadable, ...]]:
    """The clip at an index or, where its file cannot be read, another one; and those that could not be read.

    Raises VideoError of the first one if none can be read, and UserError as the dataset does.
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
    """The clips of a set that could not be read so far, in one process and its data workers."""

    num_clips: int
    """Of the set."""
    max_unreadable: float = MAX_UNREADABLE
    """Share of them from which on training stops."""
    clips: set[int] = field(default_factory=set)
    files: set[str] = field(default_factory=set)

    def add(self, failed: Iterable[Unreadable]) -> None:
        """Count clips and name files that are new. Raises UserError if these are too many."""
        for one in failed:
            self.clips.add(one.index)
            if one.file in self.files:
                continue
            self.files.add(one.file)
            logger.warning(
                "%s can no longer be read: %s. Other clips stand in for its clips (%d files so far).",
                one.file,
                one.reason,
                len(self.files),
            )
        if len(self.clips) > self.max_unreadable * self.num_clips:
            raise UserError(
                f"{len(self.clips)} of {self.num_clips} clips cannot be read, from {len(self.files)} files "
                f"({', '.join(sorted(self.files)[:5])}). Look at the disk; training goes on from its last checkpoint."
            )
