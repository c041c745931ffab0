"""Windows: parts of a dataset's clips, always the same ones."""

from __future__ import annotations

import numpy as np
import pytest

from arvid.contracts import UserError
from arvid.data.sprites import Sprites
from arvid.data.windows import Windows


def test_a_window_is_a_part_of_its_clip() -> None:
    clips = Sprites(16, num_frames=12)
    windows = Windows(clips, num_frames=5, seed=3)
    assert len(windows) == 16
    assert windows.classes == clips.classes
    starts = set()
    for clip, window in zip(clips, windows, strict=True):
        start = int(window.name.partition("@")[2])
        assert np.array_equal(window.video, clip.video[start : start + 5])
        assert (window.caption, window.attributes) == (clip.caption, clip.attributes)
        starts.add(start)
    assert {0, 7} < starts <= set(range(8))
    assert np.array_equal(windows[4].video, Windows(clips, num_frames=5, seed=3)[4].video)


def test_the_fingerprint_is_of_all_that_counts() -> None:
    clips = Sprites(4, num_frames=9)
    others = [
        Windows(clips, num_frames=4),
        Windows(clips, num_frames=5, seed=1),
        Windows(Sprites(4, num_frames=10), num_frames=5),
    ]
    found = {windows.fingerprint() for windows in (Windows(clips, num_frames=5), *others)}
    assert len(found) == 4


def test_windows_are_not_longer_than_clips() -> None:
    with pytest.raises(UserError, match="num_frames must be 1 to 9, not 10"):
        Windows(Sprites(2, num_frames=9), num_frames=10)
