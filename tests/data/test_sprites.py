"""Sprites: pure functions of (seed, index) whose pixels agree with captions and attributes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from arvid.contracts import Clip, UserError
from arvid.data.clips import resize_frames
from arvid.data.sprites import CLASSES, COLOURS, MOTIONS, SHAPES, Sprites

ALONE = Sprites(120, second=0.0, textured=0.0)


def drawn(clip: Clip) -> NDArray[np.bool_]:
    """Mask (T, H, W) of a coloured or white shape on a plain grey background."""
    background = clip.video[:, :1, :1].astype(int)
    return np.abs(clip.video.astype(int) - background).max(-1) > 60


def centres(clip: Clip) -> NDArray[np.float64]:
    """Row and column of the shape's centre in each frame, in pixels (T, 2)."""
    return np.array([np.argwhere(frame).mean(0) for frame in drawn(clip)])


def test_a_clip_is_a_pure_function_of_seed_and_index() -> None:
    one, again, other = Sprites(20), Sprites(50), Sprites(20, seed=1)
    backwards = [one[i] for i in reversed(range(20))][::-1]
    for i, clip in enumerate(backwards):
        np.testing.assert_array_equal(clip.video, again[i].video)
        assert dataclasses.replace(clip, video=None) == dataclasses.replace(again[i], video=None)
        assert (clip.video != other[i].video).any()
    assert len({clip.video.tobytes() for clip in backwards}) == 20


def test_the_numbers_of_clips_are_kept() -> None:
    dataset = Sprites(3)
    assert len(list(dataset)) == len(dataset) == 3
    for index in (3, -1):
        with pytest.raises(IndexError):
            dataset[index]


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_clips", 0), ("num_frames", 1), ("size", 7), ("second", 1.5), ("seed", -1)],
)
def test_options_that_make_no_sense_are_refused(option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{option} must be .*, not {value}"):
        Sprites(**{option: value})


@pytest.mark.parametrize("size", [16, 64, 96])
def test_every_size_shows_the_same_scene(size: int) -> None:
    shapes = [Sprites(8, size=s, textured=0.0) for s in (size, 128)]
    for small, large in zip(*shapes, strict=True):
        assert small.video.shape == (17, size, size, 3)
        assert (small.caption, small.label) == (large.caption, large.label)
        assert small.motion == pytest.approx(large.motion * size / 128)
        shrunk = resize_frames(large.video, size).astype(float)
        assert np.abs(shrunk - small.video).mean() < 3


@pytest.mark.parametrize("num_frames", [2, 5, 33])
def test_any_number_of_frames(num_frames: int) -> None:
    assert Sprites(1, num_frames=num_frames)[0].video.shape == (num_frames, 32, 32, 3)


def test_caption_label_and_attributes_agree() -> None:
    for clip in Sprites(200):
        size, colour, shape = clip.caption.split()[1:4]
        motion = clip.caption.split(" and ")[0].split(" ", 4)[4]
        assert clip.attributes == {"shape": shape, "colour": colour, "motion": motion}
        assert CLASSES[clip.label or 0] == f"{shape} {motion}"
        assert size in ("small", "large")


def test_everything_is_drawn_and_no_circle_turns() -> None:
    found = {name: {c.attributes[name] for c in ALONE} for name in ("shape", "colour", "motion")}
    assert found == {"shape": {*SHAPES}, "colour": {*COLOURS}, "motion": {*MOTIONS}}
    assert len(CLASSES) == len(SHAPES) * len(MOTIONS) - 1
    assert "circle turns" not in CLASSES
    assert not any("circle turns" in clip.caption for clip in Sprites(400))


def test_shapes_stay_inside_the_frame_and_are_of_their_colour() -> None:
    for clip in ALONE:
        shown = drawn(clip)
        assert shown.any((1, 2)).all()
        border = np.concatenate([shown[:, 0], shown[:, -1], shown[:, :, 0], shown[:, :, -1]], 1)
        assert border.mean() < 0.15, clip.name  # a shape may touch the border, not cross it
        inside = clip.video[8][shown[8]]
        colour = np.array(COLOURS[clip.attributes["colour"]])
        assert np.abs(inside.astype(int) - colour).sum(-1).min() < 10


def test_shapes_keep_their_size_while_they_move() -> None:
    for clip in ALONE:
        areas = drawn(clip).sum((1, 2))
        assert areas.min() > 0.75 * areas.max(), clip.name


def test_shapes_move_as_the_caption_says() -> None:
    directions = {
        "moves left": (0, -1),
        "moves right": (0, 1),
        "moves up": (-1, 0),
        "moves down": (1, 0),
    }
    for clip in ALONE:
        path = centres(clip)
        way = path[-1] - path[0]
        motion = clip.attributes["motion"]
        if motion in directions:
            along = way @ directions[motion]
            assert along > 6
            assert abs(np.linalg.norm(way) - along) < 1
        elif motion == "turns":
            assert np.ptp(path, axis=0).max() < 2
        else:
            assert np.ptp(path[:, 0]) > 3
            assert np.ptp(path[:, 1]) < 1


def test_motion_scores_are_positive_and_right() -> None:
    for clip in ALONE:
        assert clip.motion is not None
        assert clip.motion > 0
        if clip.attributes["motion"].startswith("moves"):
            steps = np.linalg.norm(np.diff(centres(clip), axis=0), axis=1)
            assert clip.motion == pytest.approx(steps.mean(), rel=0.1, abs=0.05)


def test_a_second_shape_is_small_of_another_colour_and_behind() -> None:
    for clip in Sprites(40, second=1.0):
        first, second = clip.caption.split(" and ")
        assert first.startswith("a large")
        assert second.startswith("a small")
        assert first.split()[2] != second.split()[2]
    assert not any(" and " in clip.caption for clip in ALONE)


def test_the_fingerprint_changes_with_every_option() -> None:
    changes = {
        "num_clips": 9,
        "seed": 1,
        "num_frames": 9,
        "size": 64,
        "second": 0.5,
        "textured": 1.0,
    }
    prints = {
        Sprites(8).fingerprint(),
        *(Sprites(**{"num_clips": 8, k: v}).fingerprint() for k, v in changes.items()),
    }
    assert len(prints) == len(changes) + 1
    assert Sprites(8).fingerprint() == Sprites(8).fingerprint()
