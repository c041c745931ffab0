"""Batches of clips: in order, with and without workers, with unchanged errors and bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data.loading import load_batches


class Clips(VideoDataset):
    """Clips of 3 square frames whose grey level is the index of the clip. The clip `broken` raises."""

    def __init__(self, num: int, broken: int = -1) -> None:
        self.num = num
        self.broken = broken

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Clip:
        if index == self.broken:
            raise UserError(f"clip {index} cannot be read")
        return Clip(video=np.full((3, 64, 64, 3), index % 256, dtype=np.uint8))

    def fingerprint(self) -> str:
        return str(self.num)


def batches(num: int) -> list[range]:
    return [range(start, min(start + 4, num)) for start in range(0, num, 4)]


@pytest.mark.parametrize("num_workers", [0, 2, None])
def test_clips_come_in_order(num_workers: int | None) -> None:
    loaded = list(load_batches(Clips(42), batches(42), num_workers))
    assert [len(clips) for clips in loaded] == [4] * 10 + [2]
    assert [int(c.video[0, 0, 0, 0]) for clips in loaded for c in clips] == list(range(42))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_clip_is_an_error_after_the_batches_before_it(num_workers: int) -> None:
    loaded = load_batches(Clips(9, broken=7), batches(9), num_workers)
    assert len(next(loaded)) == 4
    with pytest.raises(UserError, match="clip 7 cannot be read"):
        next(loaded)


def test_memory_does_not_grow_with_the_clips() -> None:
    def peak(num: int) -> int:
        tracemalloc.start()
        for _ in load_batches(Clips(num), batches(num), 0):
            pass
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(4)
    few, many = peak(8), peak(72)
    clip = 3 * 64 * 64 * 3
    assert few > 3 * clip  # the clips are part of the measured memory
    assert many < few + clip  # 64 more clips take less than the memory of one
