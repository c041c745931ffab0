"""Training from another run's weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from arvid.cli import main
from arvid.data.sprites import Sprites
from arvid.data.video import write_video
from arvid.files import sha256_file
from arvid.training.generator_module import load_generator

SIZE = [
    "--config=settings/sprites",
    "--config=paradigms/nova",
    "--config=sizes/debug",
    "--data.clips_per_step=2",
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
    "--model.init_args.optimizer.lr=1e-12",
]
START = "arvid.training.start_from.StartFrom"
AVERAGE = "arvid.training.averaging.EMAWeightAveraging"


VIDEOS = [f"--data.{part}.init_args.num_clips=2" for part in ("train", "val")]


def fit(run: Path, data: list[str], *options: str) -> int:
    return main(["fit", *SIZE, *data, *options, f"--run={run}"])


def callbacks(*items: str) -> str:
    return f"--trainer.callbacks=[{', '.join(items)}]"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of images, without the scaling-and-shift layer."""
    run = tmp_path_factory.mktemp("start") / "first"
    lines = []
    for i, clip in enumerate(Sprites(2, num_frames=2, size=32)):
        write_video(run.parent / f"{i}.mp4", clip.video, 8)
        lines.append(json.dumps({"path": f"{i}.mp4", "caption": clip.caption}))
    manifest = run.parent / "clips.jsonl"
    manifest.write_text("\n".join(lines))
    arguments = f"{{path: {manifest}, clip: {{num_frames: 1, size: 32}}}}"
    images = [
        f"--data.{part}={{class_path: arvid.data.manifest.VideoManifest, init_args: {arguments}}}"
        for part in ("train", "val")
    ]
    assert fit(run, images, "--model.init_args.paradigm.init_args.scale_shift=off") == 0
    return run


def test_text_to_video_begins_with_text_to_image(
    first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = f'{{class_path: {START}, init_args: {{checkpoint: "{first}"}}}}'
    average = f"{{class_path: {AVERAGE}, init_args: {{decay: 0.5, use_buffers: false}}}}"
    assert fit(tmp_path / "video", VIDEOS, callbacks(start, average)) == 0
    assert (
        "tensors are newly initialised: paradigm.temporal.scaling_shift.down.weight" in caplog.text
    )
    before, after = (load_generator(run).state_dict() for run in (first, tmp_path / "video"))
    name = "paradigm.spatial.encoder.blocks.0.attn.qkv.weight"
    torch.testing.assert_close(after[name], before[name])
    setting = load_generator(tmp_path / "video").description["setting"]
    assert setting["start_from"] == sha256_file(first / "checkpoints/last.ckpt")[:16]


def test_it_must_come_before_averages(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = f'{{class_path: {START}, init_args: {{checkpoint: "{first}"}}}}'
    average = f"{{class_path: {AVERAGE}, init_args: {{decay: 0.5}}}}"
    assert fit(tmp_path / "video", VIDEOS, callbacks(average, start)) == 2
    assert "must come before" in capsys.readouterr().err
