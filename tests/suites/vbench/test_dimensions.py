"""The formulas of the dimensions, on real clips and with networks whose answers are known."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.data.video import Video, read_video
from arvid.suites.vbench.dimensions import (
    AestheticQuality,
    AppearanceStyle,
    Consistency,
    DynamicDegree,
    ImagingQuality,
    TemporalFlickering,
    VideoScore,
)
from arvid.suites.vbench.flow import Flow, RaftFlow
from arvid.suites.vbench.frames import for_clip, for_clip_by_pillow, for_dino, to_float
from arvid.suites.vbench.networks import load_clip, load_dino
from arvid.suites.vbench.suite import Prompt

from torchvision.models.optical_flow import raft_large  # isort: skip  # after arvid, which mends its import

PROMPT = Prompt(text="x", dimensions=("appearance_style",), style="oil painting")


def video(num_frames: int = 4, height: int = 40, width: int = 60, fps: float = 8.0) -> Video:
    shape = (num_frames, height, width, 3)
    return Video(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), fps)


def angles(*degrees: float) -> Tensor:
    turns = torch.tensor(degrees).deg2rad()
    return torch.stack((turns.cos(), turns.sin()), dim=1)


def constant_flow(speed: float) -> Flow:
    return lambda a, b: torch.full((2, 8, 8), speed / 2**0.5)


@pytest.mark.parametrize("name", ["Bend/00000006.mp4", "Bend/00000007.mp4"])
def test_flickering_is_its_formula_on_real_clips(shared: Path, name: str) -> None:
    path = shared / "data/weizmann64" / name
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1].astype(np.float32))  # BGR, by the library that VBench reads with
    steps = [np.mean(cv2.absdiff(a, b)) for a, b in pairwise(frames)]
    expected = (255.0 - float(np.mean(steps))) / 255.0
    score = TemporalFlickering()(read_video(path), PROMPT)
    assert score.value == pytest.approx(expected, abs=1e-7)
    assert 0.9 < score.value < 1
    assert score.weight == 1


def test_flickering_counts_still_videos_only() -> None:
    clip = video(num_frames=16)
    still = TemporalFlickering(constant_flow(3.0 * 40 / 256))(clip, PROMPT)
    moving = TemporalFlickering(constant_flow(3.1 * 40 / 256))(clip, PROMPT)
    assert (still.weight, moving.weight) == (1, 0)
    assert still.value == moving.value
    with pytest.raises(UserError, match="at least two frames"):
        TemporalFlickering()(video(num_frames=1), PROMPT)


def test_static_filter_compares_the_ends_in_both_directions() -> None:
    asked = []

    def flow(a: np.ndarray, b: np.ndarray) -> Tensor:
        asked.append((int(a[0, 0, 0]), int(b[0, 0, 0])))
        return torch.zeros(2, 8, 8)

    frames = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    TemporalFlickering(flow)(Video(frames, 8.0), PROMPT)
    assert asked == [(0, 1), (1, 2), (0, 2), (2, 0)]


def test_consistency_compares_with_the_frame_before_and_the_first() -> None:
    features = angles(0, 60, 90, 180)
    score = Consistency(lambda frames: features, to_float)(video(), PROMPT)
    # before: cos 60, 30, 90; first: cos 60, 90, and 180, which is cut to 0
    expected = (0.5 + 0.75**0.5 + 0 + 0.5 + 0 + 0) / 6
    assert score.value == pytest.approx(expected, abs=1e-6)
    assert score.weight == 3
    with pytest.raises(UserError, match="at least two frames"):
        Consistency(lambda frames: features[:1], to_float)(video(), PROMPT)


def test_consistency_with_dino_and_clip(dino_folder: Path, clip_folder: Path) -> None:
    still = Video(video().frames[:1].repeat(35, axis=0), 8.0)  # more than one batch of frames
    dino = Consistency(load_dino(str(dino_folder)), for_dino)
    clip = Consistency(load_clip(str(clip_folder), "A test"), for_clip)
    for dimension in (dino, clip):
        found = dimension(still, PROMPT)
        assert found.value == pytest.approx(1, abs=1e-5)
        assert found.weight == 34
        assert 0 <= dimension(video(), PROMPT).value < 1


def test_dynamic_degree_looks_at_about_eight_frames_a_second() -> None:
    pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def flow(a: np.ndarray, b: np.ndarray) -> Tensor:
        pairs.append((a, b))
        return torch.zeros(2, 8, 8)

    clip = video(num_frames=12, fps=25.0)  # every third
    assert DynamicDegree(flow)(clip, PROMPT) == VideoScore(0.0)
    for (a, b), (i, j) in zip(pairs, pairwise(range(0, 12, 3)), strict=True):
        assert (a == clip.frames[i]).all()
        assert (b == clip.frames[j]).all()
    assert DynamicDegree(constant_flow(6.1 * 40 / 256))(clip, PROMPT).value == 1
    assert DynamicDegree(constant_flow(6.0 * 40 / 256))(clip, PROMPT).value == 0


def test_dynamic_degree_with_raft() -> None:
    torch.manual_seed(0)
    flow = RaftFlow(raft_large(weights=None))
    clip = video(num_frames=2, height=128, width=130)
    assert flow(*clip.frames).isfinite().all()
    assert DynamicDegree(flow)(clip, PROMPT).value == 1  # two frames always are


def test_aesthetic_quality_is_a_tenth_of_the_head_over_clip(clip_folder: Path) -> None:
    clip = load_clip(str(clip_folder), "A test")
    head = nn.Linear(768, 1).requires_grad_(False)
    found = AestheticQuality(clip, head)(video(), PROMPT)
    expected = head(clip(for_clip(video().frames))).mean() / 10
    assert found.value == pytest.approx(float(expected), abs=1e-6)
    assert found.weight == 1


def test_imaging_quality_is_the_mean_over_frames() -> None:
    class Brightness(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = nn.Parameter(torch.tensor(100.0))

        def forward(self, frame: Tensor) -> Tensor:
            assert frame.shape == (1, 3, 40, 60)
            return self.unit * frame.mean((1, 2, 3))[:, None]

    found = ImagingQuality(Brightness())(video(), PROMPT)
    assert found.value == pytest.approx(100 * video().frames.mean() / 255, rel=1e-5)


def test_appearance_style_is_the_cosine_with_the_style_phrase(clip_folder: Path) -> None:
    clip = load_clip(str(clip_folder), "A test")
    found = AppearanceStyle(clip)(video(), PROMPT)
    # by CLIP as a whole, as VBench has it: a hundredth of its logits at the published scale of 100
    clip.model.logit_scale.fill_(np.log(100))
    tokens = clip.tokenizer(["oil painting"], return_tensors="pt")
    logits = clip.model(pixel_values=for_clip_by_pillow(video().frames), **tokens).logits_per_image
    assert found.value == pytest.approx(float(logits.mean()) / 100, abs=1e-6)
    assert found.weight == 4
