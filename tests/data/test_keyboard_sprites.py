"""Keyboard sprites: pure functions of (seed, index) whose shape goes where the keys say, and stays in the frame."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from arvid.contracts import UserError
from arvid.data.keyboard_sprites import KEYS, MOVES, STEP, KeyboardSprites
from arvid.metrics.actions import centroids


def test_a_clip_is_a_pure_function_of_seed_and_index() -> None:
    one, again, other = KeyboardSprites(9), KeyboardSprites(50), KeyboardSprites(9, seed=1)
    for i in reversed(range(9)):
        np.testing.assert_array_equal(one[i].video, again[i].video)
        assert dataclasses.replace(one[i], video=None) == dataclasses.replace(again[i], video=None)
        assert (one[i].video != other[i].video).any()
    with pytest.raises(IndexError):
        one[9]


def test_the_shape_goes_where_the_keys_say() -> None:
    for size in (32, 64):
        for clip in KeyboardSprites(12, num_frames=17, size=size):
            moved = centroids(torch.from_numpy(clip.video)[None])[0].diff(dim=0).numpy()
            expected = STEP * MOVES[list(clip.conditions["actions"])][1:]
            np.testing.assert_allclose(moved, expected, atol=0.25 * STEP)
            np.testing.assert_array_equal(clip.conditions["action_vectors"][1:], expected / STEP)


def test_all_keys_are_pressed_and_the_first_frame_follows_none() -> None:
    actions = np.array([clip.conditions["actions"] for clip in KeyboardSprites(64)])
    assert (actions[:, 0] == 0).all()
    shares = np.bincount(actions[:, 1:].ravel(), minlength=len(KEYS)) / actions[:, 1:].size
    assert (abs(shares - 0.2) < 0.15).all()


def test_change_says_how_long_a_key_stays_pressed() -> None:
    changes = [
        np.mean([np.diff(c.conditions["actions"][1:]) != 0 for c in KeyboardSprites(64, change=p)])
        for p in (0.1, 0.9)
    ]
    assert changes[0] < 0.3 < changes[1]


def test_other_options_are_other_data_and_wrong_ones_are_refused() -> None:
    fingerprints = {
        data.fingerprint()
        for data in (KeyboardSprites(8), KeyboardSprites(8, seed=1), KeyboardSprites(8, change=0.5))
    }
    assert len(fingerprints) == 3
    with pytest.raises(UserError, match="change must be 0 to 1, not 2"):
        KeyboardSprites(change=2)
