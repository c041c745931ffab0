"""`arvid fit` and `arvid data check` say what is wrong with the clips."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import yaml

from arvid.cli import main
from arvid.data.sprites import Sprites
from arvid.data.video import write_video

CONFIGS = ("settings/sprites", "paradigms/nova", "sizes/debug")


@pytest.fixture(scope="module")
def black_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of two clips as they should be and two black ones."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(4):
        video = Sprites(4, num_frames=9)[i].video
        write_video(folder / f"a/{i}.mp4", video if i % 2 else np.zeros_like(video), 8)
    return folder


def data_config(folder: Path, videos: Path) -> Path:
    """A configuration file with the videos as both sets."""
    clips = {
        "class_path": "arvid.data.folder.VideoFolder",
        "init_args": {"root": str(videos), "clip": {"num_frames": 9, "size": 32}},
    }
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({"data": {"train": clips, "val": clips, "batch_size": 2}}))
    return path


def test_check_finds_nothing_wrong_with_sprites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few.yaml"
    few.write_text(
        "data: {train: {init_args: {num_clips: 40}}, val: {init_args: {num_clips: 8}}}\n"
    )
    assert main(["data", "check", *CONFIGS, str(few)]) == 0
    heading, train, val = capsys.readouterr().out.splitlines()[-3:]
    assert heading.split("  ")[0] == "set"
    assert train.split()[:6] == ["data.train", "40", "9x32x32", "0", "of", "32"]
    assert val.split()[:6] == ["data.val", "8", "9x32x32", "0", "of", "8"]
    assert 0.8 < float(train.split()[-1]) < 1.2


def test_check_finds_black_clips(
    tmp_path: Path, black_videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = data_config(tmp_path, black_videos)
    assert main(["data", "check", *CONFIGS, str(config)]) == 1
    printed = capsys.readouterr()
    assert "2 of 4" in printed.out
    assert (
        "2 of 4 clips of data.train are of one colour throughout (a/0.mp4, a/2.mp4)" in printed.err
    )


@pytest.mark.parametrize("more", [(), ("--model.init_args.token_type=discrete",)])
def test_fit_warns_of_them_and_trains(
    tmp_path: Path, black_videos: Path, caplog: pytest.LogCaptureFixture, more: tuple[str, ...]
) -> None:
    config = data_config(tmp_path, black_videos)
    given = [f"--config={name}" for name in (*CONFIGS, config)]
    steps = ("--trainer.max_steps=1", "--trainer.accelerator=cpu", f"--run={tmp_path}/run")
    with caplog.at_level(logging.WARNING, logger="arvid"):
        assert main(["fit", *given, *steps, *more]) == 0
    warnings = [r.message for r in caplog.records if "of one colour" in r.message]
    assert len(warnings) == 2  # data.train and data.val, once each
    assert "data.train" in warnings[0]


def test_check_says_what_is_wrong_with_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "settings/sprite"]) == 2
    assert "Did you mean 'settings/sprites'?" in capsys.readouterr().err
