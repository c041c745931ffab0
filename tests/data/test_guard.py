"""Checks of the clips before training: clips of one colour, repeated frames, tokens without unit variance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from arvid.contracts import Clip, VideoDataset
from arvid.data.guard import NUM_CLIPS, Findings, Tokens, equal_frames, is_constant, look_at
from arvid.data.sprites import Sprites

SHAPE = (9, 16, 16)


class Changed(VideoDataset):
    """Sprites with some changed clips."""

    def __init__(self, num_clips: int, change: Any, every: int = 1) -> None:
        self.clips = Sprites(num_clips, num_frames=9, size=16)
        self.change = change
        self.every = every

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        clip = self.clips[index]
        video = clip.video if index % self.every else self.change(clip.video)
        return Clip(video=video, name=f"clip {index}")

    def fingerprint(self) -> str:
        return "changed"


def black(video: np.ndarray) -> np.ndarray:
    return np.zeros_like(video)


def doubled(video: np.ndarray) -> np.ndarray:
    """Each second frame repeats the frame before."""
    return video[np.arange(len(video)) // 2 * 2]


def same(video: np.ndarray) -> np.ndarray:
    return video


def look(dataset: VideoDataset, tokens: Tokens | None = None) -> Findings:
    return look_at("data.train", dataset, SHAPE, tokens, frames=True)


def test_nothing_is_said_of_sprites() -> None:
    findings = look(Changed(200, same))
    assert (findings.num_clips, findings.looked_at) == (200, NUM_CLIPS)
    assert (findings.constant, findings.equal_frames) == ((), 0)
    assert findings.warnings == []


def test_black_clips_are_named() -> None:
    findings = look(Changed(8, black, every=4))
    assert findings.constant == ("clip 0", "clip 4")
    assert findings.equal_frames == 0
    (warning,) = findings.warnings
    assert "2 of 8 clips of data.train are of one colour throughout (clip 0, clip 4)" in warning
    all_black = look(Changed(8, black))
    assert all_black.equal_frames is None
    assert len(all_black.warnings) == 1


def test_doubled_frames_are_counted() -> None:
    findings = look(Changed(8, doubled))
    assert findings.equal_frames == pytest.approx(0.5)
    assert "50% of the frames in the clips of data.train" in findings.warnings[0]
    assert look(Changed(8, doubled, every=4)).warnings == []  # an eighth


def test_traces_of_codecs_do_not_count() -> None:
    noise = np.random.default_rng(0).integers(0, 3, (5, 8, 8, 3), dtype=np.uint8)
    assert is_constant(100 + noise)
    assert equal_frames(100 + noise).all()
    moved = np.zeros((5, 8, 8, 3), np.uint8)
    moved[range(5), range(5), 0] = 200
    assert not is_constant(moved)
    assert not equal_frames(moved).any()
    colours = np.broadcast_to(np.array([10, 200, 30], np.uint8), (3, 4, 4, 3))
    assert is_constant(colours)


def test_single_frames_have_none_before() -> None:
    findings = look_at("x", Changed(4, lambda video: video[:1]), (1, 16, 16), None, frames=True)
    assert findings.equal_frames is None
    assert findings.warnings == []


@pytest.mark.parametrize(("scale", "fine"), [(1.0, True), (0.85, True), (0.5, False), (1.5, False)])
def test_the_standard_deviation_of_tokens(scale: float, fine: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def tokens(index: int) -> tuple[Tensor, None]:
        return 3 + scale * torch.randn(2, 4, 4, 8, generator=generator), None

    findings = look(Changed(40, same), tokens)
    assert findings.token_std == pytest.approx(scale, rel=0.05)
    assert (findings.warnings == []) == fine


def test_drawn_tokens_vary_around_their_means() -> None:
    def tokens(index: int) -> tuple[Tensor, Tensor]:
        sign = 1.0 if index % 2 else -1.0
        return torch.full((1, 2, 2, 4), 0.6 * sign), torch.full((1, 2, 2, 4), 0.8)

    assert look(Changed(8, same), tokens).token_std == pytest.approx(1.0)
