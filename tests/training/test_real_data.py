"""Real videos as they come: UCF-101's AVI files with split lists, and captioned clips from a manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from arvid.cli import main
from arvid.evaluation.rows import validation_set
from arvid.sampling.sample import Conditions, sample
from arvid.training.generator_module import load_generator

SMALL = [
    "--config=settings/clips",
    "--config=paradigms/next_block",
    "--config=sizes/debug",
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
    "--data.clips_per_step=2",
    "--model.init_args.tokenizers.discrete=sprites-magvit_fsq",
    "--model.init_args.tokenizers.continuous=sprites-vae3d",
]
CLIP = "{num_frames: 17, size: 32, window: random}"


def fit(run: Path, *options: str) -> None:
    shapes = [
        f"--data.{part}.init_args.{option}"
        for part in ("train", "val")
        for option in (f"clip={CLIP}", "clips_per_video=1")
    ]
    assert main(["fit", *SMALL, *options, *shapes, f"--run={run}"]) == 0


def test_ucf101_with_its_split_lists(shared: Path, tmp_path: Path) -> None:
    root, lists = shared / "data/ucf101_mini", shared / "data/ucf101_splits"
    options = []
    for part, name in (("train", "mini_trainlist02"), ("val", "mini_testlist02")):
        options += [
            f"--data.{part}.init_args.root={root}",
            f"--data.{part}.init_args.split_list={lists / name}.txt",
            f"--data.{part}.init_args.split=all",
        ]
    fit(tmp_path / "run", *options, "--model.init_args.label=true")
    model = load_generator(tmp_path / "run")
    assert model.conditioner.sizes["label"] == len([p for p in root.iterdir() if p.is_dir()]) == 11
    validation = validation_set(model)
    assert len(validation) == 8
    clip = validation[0]
    assert clip.video.shape == (17, 32, 32, 3)
    assert clip.video.std() > 10
    assert validation.classes[clip.label or 0].lower() == clip.caption.replace(" ", "")
    conditions = Conditions.of_clips([clip])
    assert sample(model, conditions, progress=False).shape == (1, 17, 32, 32, 3)


def test_captioned_clips_from_a_manifest(shared: Path, tmp_path: Path) -> None:
    options = []
    for part in ("train", "val"):
        options += [
            f"--data.{part}.class_path=arvid.data.manifest.VideoManifest",
            f"--data.{part}.init_args.path={shared / 'data/captioned_mini/captions.jsonl'}",
            f"--data.{part}.init_args.split={part}",
            f"--data.{part}.init_args.val_fraction=0.2",
        ]
    fit(tmp_path / "run", *options)
    model = load_generator(tmp_path / "run")
    captions = [clip.caption for clip in validation_set(model)]
    assert 4 <= len(captions) <= 16
    assert all(len(caption.split()) >= 3 for caption in captions)
    videos = sample(model, Conditions(num_clips=1, captions=captions[:1]), progress=False)
    assert videos.shape == (1, 17, 32, 32, 3)


def test_a_folder_without_classes_has_no_captions(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--data.{part}.init_args.root={shared / 'data/odd'}" for part in ("train", "val")]
    assert main(["fit", *SMALL, *given, f"--run={tmp_path / 'run'}"]) == 2
    message = capsys.readouterr().err
    assert "no clip of data.train has one" in message
    assert "Traceback" not in message
