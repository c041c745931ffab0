"""The frames of a clip, and their resizing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from arvid.contracts import UserError
from arvid.data.clips import ClipSpec, clip_indices, resize_frames


def indices(num_frames: int, fps: float = 25, **options: Any) -> list[int] | None:
    spec = ClipSpec(**{"num_frames": 4, "window": "start", **options})
    found = clip_indices(num_frames, fps, spec, rng=np.random.default_rng(0))
    return None if found is None else found.tolist()


def test_stride() -> None:
    assert indices(20) == [0, 1, 2, 3]
    assert indices(20, stride=3) == [0, 3, 6, 9]
    assert indices(20, stride=3, window="center") == [5, 8, 11, 14]


def test_target_rate() -> None:
    spec = ClipSpec(num_frames=5, window="start", fps=8)
    assert list(clip_indices(40, 24, spec)) == [0, 3, 6, 9, 12]  # type: ignore[arg-type]
    assert list(clip_indices(40, 20, spec)) == [0, 3, 5, 8, 10]  # type: ignore[arg-type]
    assert spec.clip_fps(24) == 8


@pytest.mark.parametrize("native", [5.0, 8.0, 8.01])
def test_slow_videos_keep_all_frames(native: float) -> None:
    spec = ClipSpec(num_frames=3, window="start", fps=8)
    assert list(clip_indices(40, native, spec)) == [0, 1, 2]  # type: ignore[arg-type]


def test_short_videos() -> None:
    assert indices(3) is None
    assert indices(4) == [0, 1, 2, 3]
    assert indices(9, stride=3) is None
    assert indices(3, short="pad", window="random") == [0, 1, 2, 2]
    assert indices(0, short="pad") is None


def test_random_windows_cover_all_starts_evenly() -> None:
    spec = ClipSpec(num_frames=4)
    rng = np.random.default_rng(0)
    starts = [int(clip_indices(8, 25, spec, rng=rng)[0]) for _ in range(2000)]  # type: ignore[index]
    counts = np.bincount(starts, minlength=5)
    assert len(counts) == 5
    assert counts.min() > 320


def test_several_windows_are_spread_over_the_video() -> None:
    spec = ClipSpec(num_frames=5, window="center")
    starts = [clip_indices(105, 25, spec, window=w, num_windows=4)[0] for w in range(4)]  # type: ignore[index]
    assert starts == [12, 37, 62, 87]


def test_random_window_needs_random_numbers() -> None:
    with pytest.raises(ValueError, match="give rng"):
        clip_indices(20, 25, ClipSpec(num_frames=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 8, "stride": 2}, "either fps"),
        ({"num_frames": 0}, "at least 1"),
        ({"size": (64, 0)}, "at least 1"),
        ({"fps": -1.0}, "above 0"),
        ({"window": "middle"}, "random, center, start"),
        ({"resize": "stretch"}, "crop, squash"),
        ({"short": "loop"}, "drop, pad, black"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClipSpec(**options)


def test_crop_keeps_the_middle_and_the_aspect() -> None:
    frames = np.zeros((2, 20, 60, 3), np.uint8)
    frames[:, :, 20:40] = 200
    np.testing.assert_array_equal(resize_frames(frames, 10, "crop"), 200)
    squashed = resize_frames(frames, 10, "squash")
    assert squashed.shape == (2, 10, 10, 3)
    assert squashed[0, 5, 0, 0] == 0
    assert squashed[0, 5, 5, 0] == 200


@pytest.mark.parametrize("size", [8, (8, 12), (64, 16), (100, 100), (7, 90)])
@pytest.mark.parametrize("mode", ["crop", "squash"])
@pytest.mark.parametrize("source", [(1, 1), (30, 40), (361, 64)])
def test_any_size_to_any_size(size: Any, mode: Any, source: tuple[int, int]) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    frames = np.full((2, *source, 3), 77, np.uint8)
    resized = resize_frames(frames, size, mode)
    assert resized.shape == (2, height, width, 3)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, 77)


@pytest.mark.parametrize("size", [(8, 8), (8, 128)])
def test_shrinking_is_antialiased(size: tuple[int, int]) -> None:
    """Stripes finer than the target's pixels become grey, without aliasing, even if one axis grows."""
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    resized = resize_frames(stripes, size, "squash")
    assert np.abs(resized.astype(int) - 100).max() <= 1
