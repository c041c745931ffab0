"""`arvid reconstruct`: any size and length, in chunks as at once, side by side, and numbers that mean what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor

from arvid.cli import main
from arvid.contracts import TokenSpec, VideoTokenizer
from arvid.data.collate import normalise, to_uint8
from arvid.data.sprites import Sprites
from arvid.data.video import probe_video, read_video, write_video
from arvid.metrics.paired import MAX_PSNR, PairedMetric, Psnr, Ssim
from arvid.sampling.reconstruction import plan, reconstruct
from arvid.training.export import load_tokenizer


class Exact(VideoTokenizer):
    """Loses nothing: a token is all pixels behind it."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    @property
    def spec(self) -> TokenSpec:
        return TokenSpec("continuous", 3 * 4 * 8 * 8, (4, 8, 8), self.causal)

    def encode(self, video: Tensor) -> Tensor:
        self.spec.grid(*video.shape[2:])
        if self.causal:
            video = torch.cat([video[:, :, :1]] * 3 + [video], dim=2)
        cut = "b c (t rt) (h rh) (w rw) -> b t h w (c rt rh rw)"
        return rearrange(video, cut, rt=4, rh=8, rw=8)

    def decode(self, tokens: Tensor) -> Tensor:
        join = "b t h w (c rt rh rw) -> b c (t rt) (h rh) (w rw)"
        video = rearrange(tokens, join, rt=4, rh=8, rw=8)
        return video[:, :, 3:] if self.causal else video


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """19 frames of 50x34 pixels."""
    frames = Sprites(1, num_frames=19, size=50)[0].video[:, :34]
    write_video(tmp_path / "clip.mp4", frames, 12, crf=0)
    return tmp_path / "clip.mp4"


def metrics() -> dict[str, PairedMetric]:
    return {"PSNR": Psnr(), "SSIM": Ssim()}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("num_frames", [1, 2, 4, 5, 19])
def test_what_loses_nothing_gives_the_video_back(
    clip: Path, tmp_path: Path, causal: bool, num_frames: int
) -> None:
    tokenizer = Exact(causal)
    work = plan(clip, tokenizer.spec, max_frames=num_frames)
    assert work.padded[1:] == (40, 56)
    scores = reconstruct(clip, tokenizer, work, tmp_path / "out.mp4", metrics())
    assert scores == {"PSNR": f"{MAX_PSNR:.2f} dB", "SSIM": "1.0000"}
    written = read_video(tmp_path / "out.mp4")
    assert written.frames.shape == (num_frames, 34, 50 + 4 + 50, 3)
    assert written.fps == pytest.approx(12)
    left, right = written.frames[:, :, :50], written.frames[:, :, 54:]
    assert (
        np.abs(left.astype(int) - right).mean() < 2
    )  # of 255: that much H.264 may tell them apart


def test_chunks_give_what_the_whole_gives(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer("sprites-magvit_fsq")
    work = plan(clip, tokenizer.spec, max_frames=17)
    assert work.padded == (17, 36, 52)
    frames = read_video(clip, max_frames=17).frames
    padded = np.pad(frames, ((0, 0), (0, 2), (0, 2), (0, 0)), mode="edge")
    made = to_uint8(tokenizer.decode(tokenizer.encode(normalise(padded)[None])))[:, :, :34, :50]
    expected = metrics()
    for metric in expected.values():
        metric.update(made, torch.from_numpy(frames)[None])
    for pixels in (1 << 20, 1):
        monkeypatch.setattr("arvid.sampling.reconstruction.CHUNK_PIXELS", pixels)
        scores = reconstruct(clip, tokenizer, work, tmp_path / "out.mp4", metrics())
        assert float(scores["PSNR"].split()[0]) == pytest.approx(
            expected["PSNR"].compute().value, abs=0.01
        )
        assert float(scores["SSIM"]) == pytest.approx(expected["SSIM"].compute().value, abs=1e-3)


def test_the_command_tells_what_it_did(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"")
    out = tmp_path / "out"
    given = ["--tokenizer=sprites-vae3d", f"--out={out}", "--size=24", "--frames=6"]
    assert main(["reconstruct", str(broken), str(clip), *given]) == 2
    told = capsys.readouterr()
    assert (
        "6 frames of 35x24 (resized from 50x34), padded to 9 of 36x24 and cut again: "
        "3x6x9 tokens of 8 channels." in told.out
    )
    assert f"-> {out / 'clip.mp4'}" in told.out
    assert "PSNR " in told.out
    assert "LPIPS" not in told.out
    assert "No LPIPS: LPIPS with the AlexNet backbone needs alexnet-owt-7be5be79.pth" in told.err
    assert "broken.mp4 cannot be read as a video: the file is empty" in told.err
    assert "1 of 2 videos could not be reconstructed" in told.err
    assert [path.name for path in out.iterdir()] == ["clip.mp4"]
    assert probe_video(out / "clip.mp4").num_frames == 6


def test_frames_too_small_for_a_metric(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--tokenizer=sprites-vae3d", f"--out={tmp_path / 'o.mp4'}", "--size=8", "--frames=1"]
    assert main(["reconstruct", str(clip), *given]) == 0
    assert "SSIM - (SSIM needs frames of at least 11x11 pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("videos", "more", "reason"),
    [
        (["clip.mp4"], ["--out=."], "clip.mp4 is the video itself"),
        (["clip.mp4", "b.mp4"], ["--out=c.mp4"], "several videos need a folder"),
        (["clip.mp4", "x/clip.mp4"], ["--out=o"], "have the same name"),
        (["clip.mp4"], ["--out=o", "--tokenizer=sprites-vea3d"], "Did you mean 'sprites-vae3d'"),
    ],
)
def test_what_cannot_be_done_is_said_before(
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    videos: list[str],
    more: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(clip.parent)
    assert main(["reconstruct", *videos, "--tokenizer=sprites-vae3d", *more]) == 2
    assert reason in capsys.readouterr().err
    assert [path.name for path in clip.parent.iterdir()] == ["clip.mp4"]
