"""Physics-IQ: names and lengths of the videos, and the frames that a model is given."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from arvid.commands import physics_iq as command
from arvid.contracts import UserError
from arvid.data.video import probe_video, read_video, write_video
from arvid.suites import physics_iq
from arvid.suites.physics_iq import (
    given_frames,
    load_scenes,
    num_generated_frames,
    require_all,
    scored_part,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two scenes at 8 frames per second. Conditioning videos get brighter by 10 levels a frame."""
    root = tmp_path / "physics-IQ-benchmark"
    rows = []
    for number, take in ((1, 1), (2, 1), (3, 2)):
        scene = f"{number:04d}_perspective-left_take-{take}_trimmed-fall.mp4"
        name = f"{number:04d}_perspective-left_trimmed-fall.mp4"
        rows.append((scene, "a ball falls", "Solid Mechanics", name))
        ramp = np.broadcast_to(10 * np.arange(24)[:, None, None, None], (24, 36, 64, 3))
        place = f"split-videos/conditioning/8FPS/{number:04d}_conditioning-videos_8FPS.mp4"
        write_video(root / place, ramp.astype(np.uint8), 8, crf=0)
        switch = root / f"switch-frames/{number:04d}_switch-frames_anyFPS.jpg"
        switch.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(switch), np.full((36, 64, 3), 240, np.uint8))
    with (tmp_path / "descriptions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("scenario", "description", "category", "generated_video_name"))
        writer.writerows(rows)
    return root


def test_only_the_first_take_is_generated(data: Path, tmp_path: Path) -> None:
    scenes = load_scenes(tmp_path / "descriptions.csv")
    assert [scene.file[:5] for scene in scenes] == ["0001_", "0002_"]
    assert scenes[0].seed(7) == 8
    with pytest.raises(UserError, match=r"has 198 videos, but descriptions.csv names 2"):
        require_all(scenes)
    (tmp_path / "other.csv").write_text("scenario,description\na,b\n")
    with pytest.raises(UserError, match="has no column generated_video_name"):
        load_scenes(tmp_path / "other.csv")
    with (tmp_path / "descriptions.csv").open("a") as file:  # a download that was cut off
        file.write("0004_perspective-left_take-1")
    with pytest.raises(UserError, match="'' is not the name of a video of scene 0004"):
        load_scenes(tmp_path / "descriptions.csv")


def test_the_last_given_frames_are_those_before_the_switch(data: Path, tmp_path: Path) -> None:
    scene = load_scenes(tmp_path / "descriptions.csv")[1]
    last = given_frames(scene, data, "v2v", fps=8, num_given=5, size=(16, 16))
    assert last.shape == (5, 16, 16, 3)
    assert np.abs(last[:, 8, 8, 0] - 10.0 * np.arange(19, 24)).max() <= 2
    (switch,) = given_frames(scene, data, "i2v", fps=8, num_given=1, size=(16, 16))
    assert abs(int(switch[8, 8, 0]) - 240) <= 2
    with pytest.raises(UserError, match="has 24 frames, fewer than the 25"):
        given_frames(scene, data, "v2v", fps=8, num_given=25, size=(16, 16))
    with pytest.raises(UserError, match="has 0 files of scene 0002, not 1"):
        given_frames(scene, data, "v2v", fps=16, num_given=5, size=(16, 16))


@pytest.mark.parametrize("fps", command.RATES)
def test_five_seconds_are_scored(fps: int) -> None:
    for given, num_given, first in (("i2v", 1, 0), ("v2v", 21, 21)):
        frames = num_generated_frames(given, fps=fps, num_given=num_given, stride=4, causal=True)
        assert frames % 4 == 1
        assert frames - 4 < 5 * fps + first <= frames
        numbered = np.arange(frames)[:, None, None, None] * np.ones((1, 1, 1, 3), int)
        scored = scored_part(numbered, given, fps=fps, num_given=num_given)[:, 0, 0, 0]
        assert scored.tolist() == list(range(first, first + 5 * fps))


def test_as_many_frames_are_given_as_the_tokenizer_takes() -> None:
    def given(**values: Any) -> int:
        options = argparse.Namespace(**{"given": "v2v", "given_frames": None, "fps": 8, **values})
        return command._num_given(options, SimpleNamespace(causal=True, strides=(4, 8, 8)))

    assert [given(), given(fps=30), given(given_frames=9), given(given="i2v")] == [21, 89, 9, 1]


def test_the_command_writes_the_videos(
    trained_run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(physics_iq, "NUM_VIDEOS", 2)
    monkeypatch.setattr(physics_iq, "SECONDS", 1)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = ["sample", str(tmp_path / "row"), "--checkpoint", str(trained_run), "--data", str(data)]
    words += ["--descriptions", str(tmp_path / "descriptions.csv"), "--given", "v2v", "--fps", "8"]
    words += ["--given-frames", "5"]
    assert command.run(parser.parse_args(words)) == 0
    videos = sorted((tmp_path / "row/physics-iq/videos").iterdir())
    assert [path.name[:5] for path in videos] == ["0001_", "0002_"]
    probe = probe_video(videos[0])
    assert (probe.num_frames, probe.fps) == (8, 8)
    assert read_video(videos[0]).frames.shape[1:3] == (32, 32)
    with pytest.raises(UserError, match=r"other samples \(seed differ"):
        command.run(parser.parse_args([*words, "--seed", "1"]))
