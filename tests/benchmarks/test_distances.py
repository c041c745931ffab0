"""The benchmark of distances: what it writes, and where reconstructions stand."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from arvid.data.sprites import Sprites
from arvid.data.video import write_video

SCRIPT = "fvd/distances"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight videos of sprites."""
    folder = tmp_path_factory.mktemp("clips") / "sprites"
    folder.mkdir()
    clips = Sprites(8, seed=3)
    for i in range(8):
        write_video(folder / f"{i}.mp4", clips[i].video, fps=8)
    return folder


def test_a_reconstruction_has_a_place(
    script: ModuleType, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--data", str(videos), "--clips-per-video=1", "--num-frames=5", "--size=32"]
    given += ["--tokenizer", "sprites:vae3d=sprites-vae3d", f"--out={tmp_path}"]
    monkeypatch.setattr("sys.argv", [SCRIPT, *given])
    script.main()
    found = json.loads((tmp_path / "results.json").read_text())["data"]["sprites"]
    ours = found["candidates"]["fd-efficientnet"]
    assert ours["reconstructions"]["vae3d"] > 0
    assert "| reconstruction (vae3d) |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "distances.svg").is_file()


def test_a_reconstruction_that_is_worse_than_a_frozen_clip_is_misplaced(script: ModuleType) -> None:
    rises = {"frozen": [1.0, 9.0], "shuffled": [1.0, 5.0], "noise": [1.0, 7.0], "blur": [0.1, 0.2]}
    found = script.misplaced({"good": 4.9, "bad": 5.1, "better than real": -0.1}, rises)
    assert found == ["bad", "better than real"]


def test_a_tokenizer_of_another_folder_is_refused(
    script: ModuleType, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--data", str(videos), "--tokenizer", "weizmann64:vae3d=sprites-vae3d"]
    monkeypatch.setattr("sys.argv", [SCRIPT, *given])
    with pytest.raises(script.UserError, match="--data has no folder of this name"):
        script.main()
    monkeypatch.setattr("sys.argv", [SCRIPT, *given[:3], "vae3d=sprites-vae3d"])
    with pytest.raises(SystemExit):
        script.main()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["--tokenizer", "sprites:a=sprites-vae3d"] * 2, "--tokenizer: sprites:a is given twice"),
        (["--data", "a/sprites", "b/sprites"], "--data: sprites is given twice"),
        (["--tokenizer", "sprites:a=sprites-vae3d", "--size=33"], "--tokenizer sprites:a: .*33"),
    ],
)
def test_what_cannot_be_written_is_refused_before_clips_are_measured(
    script: ModuleType,
    videos: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    reason: str,
) -> None:
    monkeypatch.setattr("sys.argv", [SCRIPT, "--data", str(videos), *given])
    monkeypatch.setattr(script, "measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(script.UserError, match=reason):
        script.main()


def test_a_reconstruction_is_near_its_clip(script: ModuleType) -> None:
    clip = torch.from_numpy(Sprites(1, seed=3)[0].video)[None, :5]
    made = script.reconstruct(clip, "sprites-vae3d")
    assert made.shape == clip.shape
    assert (made.float() - clip.float()).square().mean() < clip.float().var() / 10
