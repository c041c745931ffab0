"""The motion score against known motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arvid.data import motion
from arvid.data.motion import MotionCache, motion_score
from arvid.data.sprites import Sprites


def texture(height: int, width: int) -> np.ndarray:
    """Smooth random blobs, uint8 (H, W, 3)."""
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8), np.uint8)
    gray = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.repeat(gray[..., None], 3, axis=-1)


@pytest.mark.parametrize("speed", [0, 1, 3, 5])
def test_a_moving_camera_scores_its_speed(speed: int) -> None:
    scene = texture(64, 160)
    frames = np.stack([scene[:, t * speed : t * speed + 64] for t in range(9)])
    assert motion_score(frames) == pytest.approx(speed, abs=0.15 * speed + 0.01)


def test_nothing_to_track_scores_zero() -> None:
    assert motion_score(np.full((5, 32, 32, 3), 80, np.uint8)) == 0
    assert motion_score(texture(32, 32)[None]) == 0


def test_it_follows_the_exact_score_of_sprites() -> None:
    clips = list(Sprites(60, second=0.0))
    exact = [clip.motion or 0.0 for clip in clips]
    measured = [motion_score(clip.video) for clip in clips]
    assert np.corrcoef(exact, measured)[0, 1] > 0.9


def test_scores_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path))
    frames = np.stack([texture(32, 48)[:, t : t + 32] for t in range(5)])
    first = MotionCache().score(["a", 1], frames)
    monkeypatch.setattr(motion, "motion_score", lambda _: pytest.fail("measured again"))
    assert MotionCache().score(["a", 1], frames) == first
    with pytest.raises(pytest.fail.Exception):
        MotionCache().score(["b", 1], frames)
