"""NBP's Table 1: rows, columns and files of every scale; published numbers as the paper has them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import cv2
import pytest

from arvid.cli import main
from arvid.contracts import UserError
from arvid.data.sprites import Sprites
from arvid.data.video import write_video

SCRIPT = "nbp/table1_reconstruction"


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["table1", *arguments])
    module.main()


def test_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("ARVID_WEIGHTS", str(tmp_path / "nothing"))
    out = tmp_path / "out"
    assert main(["bench", "nbp/table1_reconstruction", "--num-clips=3", f"--out={out}"]) == 0
    page = (out / "table.md").read_text()
    assert page in capsys.readouterr().out
    assert "> No rfvd: " in page
    assert "i3d_pretrained_400.pt, which is missing." in page
    assert "| NBP (causal 3D CNN, FSQ) | 370M | 16 | 15.5 | 29.30 | 0.893 | 0.0648 | 6.73 |" in page
    result = json.loads((out / "results.json").read_text())
    discrete, continuous = (result["costs"][f"sprites-{n}"] for n in ("magvit_fsq", "vae3d"))
    assert discrete["bits_per_token"] == pytest.approx(11.61, abs=0.01)  # log2(3125)
    assert discrete["bits_per_pixel"] == pytest.approx(11.61 * 5 * 8 * 8 / (17 * 32 * 32), rel=1e-3)
    assert discrete["tokens_counted"] == 3 * 5 * 8 * 8
    assert 1 / 3125 < discrete["codebook_share"] < 960 / 3125
    assert 1 < discrete["codebook_perplexity"] < 960
    assert continuous["bits_per_token"] is continuous["codebook_share"] is None
    found = {m["name"]: m["value"] for m in result["metrics"]["Sprites"]["sprites-vae3d"]}
    assert found.keys() == {"fd-sprites", "psnr-pooled", "ssim"}
    assert found["psnr-pooled"] > 20
    picture = cv2.imread(str(out / "originals-and-reconstructions.png"))
    # 3 clips of 3 rows, 9 frames; frame numbers above, names on the left, 20 between clips
    assert picture.shape[0] == 20 + 3 * (3 * 100 - 4) + 2 * 20
    assert 9 * 100 - 4 < picture.shape[1] < 9 * 100 + 200
    figure = cv2.imread(str(out / "figure6.png"))  # the same with 5 frames
    assert figure.shape[0] == picture.shape[0]
    assert figure.shape[1] == picture.shape[1] - 4 * 100


@pytest.fixture
def ucf101(tmp_path: Path) -> list[str]:
    """Four clips in two classes, with UCF-101's lists: two of them for validation."""
    names = [f"{c}/v_{c}_g0{i}_c01" for c in ("A", "B") for i in (1, 2)]
    for name, clip in zip(names, Sprites(4, size=40), strict=True):
        write_video(tmp_path / f"ucf/{name}.mp4", clip.video, 16)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "testlist01.txt").write_text("".join(f"{n}.mp4\n" for n in names[::2]))
    train = [n for n in names if n not in names[::2]]
    (lists / "trainlist01.txt").write_text("".join(f"{n}.mp4 1\n" for n in train))
    return [f"--ucf101={tmp_path / 'ucf'}", f"--ucf101-lists={lists}"]


def test_both_variants_of_a_set_stand_beside_the_published_rows(
    script: ModuleType, ucf101: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "METRICS", ("psnr-pooled", "ssim"))  # those without weights
    monkeypatch.setattr(script, "TRAINING_CLIPS", 3)
    out = tmp_path / "out"
    tokenizer = "--tokenizer=ours=sprites-magvit_fsq"
    run(script, monkeypatch, "--scale=paper", *ucf101, tokenizer, f"--out={out}")
    page = (out / "table.md").read_text()
    assert page.count("| NBP (causal 3D CNN, FSQ), published | 370M | 16 | 15.5 | 29.30 |") == 2
    assert page.count("| ours | 0.459M | 11.61 |") == 2
    result = json.loads((out / "results.json").read_text())
    val, train = result["sets"]["UCF-101, val"], result["sets"]["UCF-101, train"]
    assert (val["num_clips"], val["clip"]["fps"], val["clip"]["size"]) == (2, 16, 128)
    assert (train["num_clips"], train["name"]) == (3, "nbp-rfvd-ucf101-train")  # of 2: one again
    metrics = result["metrics"]["UCF-101, train"]["ours"]
    assert [(m["name"], m["count"]) for m in metrics] == [("psnr-pooled", 3), ("ssim", 3)]


def test_the_paper_scale_leaves_no_metric_out(
    script: ModuleType, ucf101: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVID_WEIGHTS", str(tmp_path / "nothing"))
    given = ["--scale=paper", *ucf101, "--tokenizer=sprites-vae3d", f"--out={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=r"needs i3d_pretrained_400\.pt, which is missing"):
        run(script, monkeypatch, *given)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--scale=lab"], "needs real clips"),
        (["--scale=paper", "--ucf101=x", "--tokenizer=a"], "needs --ucf101-lists"),
        (["--tokenizer=x=a", "--tokenizer=x=b"], "same name"),
    ],
)
def test_what_it_cannot_do_without(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        run(script, monkeypatch, *arguments)


def test_a_scale_with_real_clips_needs_tokenizers_by_name(
    script: ModuleType, ucf101: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="Name the tokenizers"):
        run(script, monkeypatch, "--scale=lab", *ucf101)
