"""Options of `arvid fit` that follow from a user's own clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arvid.contracts import UserError
from arvid.data.video import write_video
from arvid.experiments.variants import condition_options


def write_clips(*paths: Path) -> None:
    for path in paths:
        write_video(path, np.zeros((3, 16, 16, 3), np.uint8), 8)


def test_the_caption_is_a_condition_if_a_video_has_one(tmp_path: Path) -> None:
    write_clips(tmp_path / "videos/jump/a.mp4", tmp_path / "videos/bend/b.mp4")
    assert condition_options(tmp_path / "videos") == []
    manifest = tmp_path / "clips.csv"
    manifest.write_text("path,text\nvideos/jump/a.mp4,\nvideos/bend/b.mp4,a person bends\n")
    assert condition_options(manifest) == []


def test_clips_without_captions_train_without_a_condition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clips(tmp_path / "flat/a.mp4", tmp_path / "flat/b.mp4")
    assert condition_options(tmp_path / "flat") == ["--model.init_args.text=null"]
    assert "without a condition" in capsys.readouterr().out
    manifest = tmp_path / "clips.csv"
    manifest.write_text("path\nflat/a.mp4\n")
    assert condition_options(manifest) == ["--model.init_args.text=null"]


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no videos"):
        condition_options(tmp_path)
