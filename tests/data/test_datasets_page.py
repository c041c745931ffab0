"""docs/datasets.md: its commands run on small copies; those that need a download are parsed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from arvid.cli import main
from arvid.data.manifest import VideoManifest
from arvid.data.prepare.facts import DATASETS

PAGE = Path(__file__).parents[2] / "docs/datasets.md"


def commands() -> list[list[str]]:
    """Words of each `arvid` command line, without `arvid`. A backslash joins two lines."""
    text = PAGE.read_text().replace("\\\n", "")
    lines = re.findall(r"^    arvid (.*)$", text, re.MULTILINE)
    return [shlex.split(line) for line in dict.fromkeys(lines)]


def test_every_dataset_is_on_the_page() -> None:
    assert {words[1] for words in commands() if words[0] == "data"} == {f.name for f in DATASETS}


@pytest.fixture
def small_copies(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with the sources of three datasets."""
    links = {"UCF-101": "ucf101_mini", "ucfTrainTestlist": "ucf101_splits", "videos": "weizmann64"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(shared / "data" / target)
    (tmp_path / "mnist").mkdir()
    pictures = np.full((12, 28, 28), 99, np.uint8)
    labels = np.arange(12) % 10
    arrays = {"x_train": pictures, "y_train": labels, "x_test": pictures, "y_test": labels}
    np.savez(tmp_path / "mnist/mnist.npz", **arrays)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("small_copies")
def test_from_the_archive_to_the_first_step() -> None:
    """Run the commands of the available datasets, and one step of the page's training on the first."""
    few = ["--num-train=4", "--num-val=4", "--num-test=4"]
    extra = {"ucf101": [], "moving-mnist": few, "folder": []}
    preparing = [words for words in commands() if words[1] in extra and "--download" not in words]
    assert len(preparing) == 3
    for words in preparing:
        assert main([*words, *extra[words[1]]]) == 0
        for part in yaml.safe_load(Path(words[2], "data.yaml").read_text())["data"].values():
            assert part["class_path"] == "arvid.data.manifest.VideoManifest"
            assert VideoManifest(**part["init_args"])[0].video.shape == (17, 64, 64, 3)
    (fit,) = [words for words in commands() if words[0] == "fit"]
    short = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.accelerator=cpu"]
    short += ["--trainer.limit_val_batches=1", "--data.clips_per_step=2", "--data.batch_size=2"]
    assert main([*fit, *short, "--trainer.callbacks=null"]) == 0
    assert list(Path("runs/ucf101-fsq/checkpoints").glob("*.ckpt"))
