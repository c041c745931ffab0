"""Windows cover a clip once. Each window after the first begins with finished frames."""

from __future__ import annotations

import pytest

from arvid.contracts import UserError
from arvid.nn.windows import Window, windows


def test_a_clip_of_the_trained_length_is_one_window() -> None:
    assert windows(5, 2, 5, 1) == [Window(0, 2, 5)]


def test_later_windows_begin_with_the_overlap() -> None:
    assert windows(9, 0, 4, 2) == [
        Window(0, 0, 4),
        Window(2, 2, 6),
        Window(4, 2, 8),
        Window(6, 2, 9),
    ]


def test_many_given_frames_are_seen_as_far_as_the_overlap_reaches() -> None:
    assert windows(9, 6, 4, 1) == [Window(5, 1, 9)]


@pytest.mark.parametrize("given", [0, 3, 7])
@pytest.mark.parametrize("overlap", [1, 4])
def test_every_frame_is_drawn_once_in_order(given: int, overlap: int) -> None:
    parts = windows(17, given, 5, overlap)
    drawn = [i for part in parts for i in range(part.start + part.known, part.stop)]
    assert drawn == list(range(given, 17))
    assert all(part.num_frames <= 5 for part in parts)


def test_an_overlap_of_the_whole_window_is_refused() -> None:
    with pytest.raises(UserError, match="overlap of 4 latent frames leaves nothing"):
        windows(9, 0, 4, 4)
