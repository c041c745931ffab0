"""docs/extending.md as it stands: its files become a package, and its commands run (with fewer steps)."""

from __future__ import annotations

import glob
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from arvid import registry
from arvid.cli import main
from arvid.contracts import Condition, ContextSpec, Request, Size, TokenGrid, TokenSpec
from arvid.data.sprites import Sprites
from arvid.evaluation.protocols import get_protocol
from arvid.evaluation.records import load_run
from arvid.sampling.sample import Conditions, sample
from arvid.training.export import load_tokenizer
from arvid.training.generator_module import load_generator
from arvid.training.sampling_options import build_sampling

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
FEWER = {
    "fit": [
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
        "--data.clips_per_step=2",
    ],
    "sample": ["--count=1"],
    "evaluate": ["--num-clips=4"],
    "compare": [],
    "export": [],
    "import": [],
}
SPRITES = ["--data.train.init_args.num_clips=4", "--data.val.init_args.num_clips=8"]
PARTS = {
    "paradigms": "frame_wise",
    "tokenizers": "patches",
    "text_encoders": "letters",
    "conditions": "tempo",
    "datasets": "arrays",
    "metrics": "brightness",
    "importers": "squares",
    "exporters": "squares",
}


def blocks(language: str) -> list[str]:
    """The page's code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The page's commands, as arguments."""
    return [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]


def install(folder: Path) -> None:
    """Write the page's files into a folder and announce its entry points, as pip does."""
    for block in [*blocks("toml"), *blocks("python"), *blocks("yaml")]:
        name = block.splitlines()[0].removeprefix("# ")
        (folder / name).write_text(block)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / "my_arvid_parts-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder: the page's package, installed, and some data for its dataset."""
    install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for part, num in (("train", 4), ("val", 4)):
        folder = tmp_path / "data" / part
        folder.mkdir(parents=True)
        for clip in Sprites(num, size=32):
            np.save(folder / f"{clip.caption.replace(' ', '_')}.npy", clip.video)
    yield tmp_path
    for name in set(PARTS.values()):
        sys.modules.pop(name, None)


def test_each_part_is_one_file_and_known_by_name(package: Path) -> None:
    assert len(blocks("python")) == len(set(PARTS.values()))
    for kind, name in PARTS.items():
        assert name in registry.names(kind)
        assert registry.get(kind, name).__module__ == name


def test_the_commands_of_the_page_run(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _, command, *arguments in (c for c in commands() if c[0] == "arvid"):
        given = [part for a in arguments for part in (sorted(glob.glob(a)) if "*" in a else [a])]
        given = ["sizes/debug" if a == "sizes/tiny" else a for a in given]
        data = SPRITES if command == "fit" and "arrays.yaml" not in given else []
        assert main([command, *given, *FEWER[command], *data]) == 0, capsys.readouterr().err
    own = load_generator("runs/frame_wise").sampling
    assert own.changed() == {"guidance": 3.0, "top_p": 0.9, "stabilisation": 0.1}
    model = load_generator("runs/frame_wise_patches")
    assert model.sampling.changed() == {"guidance": 3.0, "stabilisation": 0.1}
    assert type(model.tokenizer).__name__ == "Patches"
    assert model.description["factors"] == {
        "paradigm": "frame_wise",
        "token_type": "continuous",
        "size": "debug",
    }
    videos = sample(model, Conditions(num_clips=1, captions=["a red circle"]), progress=False)
    assert videos.shape == (1, 9, 32, 32, 3)
    imported = load_tokenizer("patches.safetensors").state_dict()
    exported = load_tokenizer("runs/patches/checkpoints/last.ckpt").state_dict()
    assert torch.equal(imported["encoder.weight"], exported["encoder.weight"])
    assert load_generator("runs/tempo").conditioner.sizes == {"tempo": 1}
    (record,) = load_run("runs/frame_wise")
    assert record.protocol_name == "sprites-generation-4-brightness"
    assert [(m.name, m.count) for m in record.metrics] == [("brightness", 4)]
    assert "Brightness error" in (package / "runs/report/table.md").read_text()


def test_a_sampling_option_of_ones_own(package: Path) -> None:
    """It changes the clips, and is ignored by the other rows of a setting that names it."""
    cls = registry.get("paradigms", "frame_wise")
    spec, grid = TokenSpec("discrete", 5, (4, 8, 8), True), TokenGrid(3, 2, 2)
    net = cls(spec, grid, ContextSpec(), Size(dim=8, depth=1, num_heads=1)).eval()
    greedy = net.options_for("discrete")().replace(temperature=0.0)
    drawn = [
        net.generate(Request(Condition(), grid, options=greedy.replace(stabilisation=share)))
        for share in (0.0, 1.0)
    ]
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[1][:, 0], drawn[1][:, 1])  # each frame's states are the one before's
    nova = registry.get("paradigms", "nova")
    assert build_sampling(nova, "discrete", {"stabilisation": 0.3}).changed() == {}


def test_a_record_of_other_metrics_is_another_protocol(package: Path) -> None:
    data = Sprites(8)
    plain = get_protocol("sprites-generation")
    other = get_protocol("sprites-generation", metrics=["brightness"])
    assert other.metrics == ("brightness",)
    assert other.name != plain.name
    assert other.describe(data)["hash"] != plain.describe(data)["hash"]


def test_registered_parts_are_held_to_their_contracts(package: Path) -> None:
    (command,) = (c for c in commands() if c[0] == "python")
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command[1:], "-p", "no:cacheprovider"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert (
        int(passed[1]) >= 18
    )  # each contract of a paradigm, on both token types, and of a tokenizer


def test_the_page_shows_every_kind_of_part() -> None:
    for kind in registry.KINDS:
        assert f'[project.entry-points."arvid.{kind}"]' in PAGE
