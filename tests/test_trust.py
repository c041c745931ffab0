"""A checkpoint from a stranger is data: whatever it names, nothing of it is imported or executed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import arvid
from arvid.cli import main
from arvid.contracts import UserError
from arvid.data.clips import ClipSpec
from arvid.training.checkpoint_io import save_checkpoint
from arvid.training.instantiate import instantiate
from arvid.training.keys import CHECKPOINT_KEY, TOKENIZER_KEY

EVIL = """
from pathlib import Path

Path("PWNED").touch()


class Evil:
    def __init__(self, *args, **kwargs):
        Path("PWNED").touch()


def evil(*args, **kwargs):
    Path("PWNED").touch()
"""
PAYLOADS: dict[str, Any] = {
    "os.system": {"class_path": "os.system", "init_args": {"command": "touch PWNED"}},
    "timeit": {
        "class_path": "timeit.timeit",
        "init_args": {"stmt": "__import__('pathlib').Path('PWNED').touch()", "number": 1},
    },
    "class": {"class_path": "evil.Evil", "init_args": {}},
    "function": {"class_path": "evil.evil"},
    "text": "evil.Evil",
    "through arvid": {"class_path": "arvid.nn.text.re.purge"},
    "message": "module 'evil' has no attribute 'x'",
    "message of modules": "No module named 'evil.x'",
}


class WithOptions:
    """Takes a dataclass that may be absent, as datasets of files do."""

    def __init__(self, clip: ClipSpec | None = None, label: int | None = None) -> None:
        self.clip = clip


PLACES = (
    "paradigm",
    "text",
    "text.init_args.dim",
    "paradigm.init_args.diffusion",
    "paradigm.init_args.block",
    "optimizer",
    "sampling",
    "size",
    "size.dim",
    "clip_shape",
    "callbacks",
)
"""Where in the configuration a payload is put."""


@pytest.fixture(scope="module")
def honest(trained_run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(
        trained_run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True
    )
    return content


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a module that leaves a trace, and first on the path as under `python -m arvid`."""
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    return tmp_path


def tampered(honest: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> Path:
    """A checkpoint with a changed description, and with the seal of one that is whole."""
    description = json.loads(honest[CHECKPOINT_KEY])
    change(description)
    path = Path("run/checkpoints/last.ckpt")
    save_checkpoint({**honest, CHECKPOINT_KEY: json.dumps(description)}, path)
    return path


def put(values: dict[str, Any], place: str, value: Any) -> None:
    *outer, last = place.split(".")
    for key in outer:
        values = values.setdefault(key, {})
    values[last] = value


WAYS: dict[str, Callable[[Path], object]] = {
    "sample": lambda path: main(["sample", "--checkpoint", str(path), "--count", "1"]),
    "evaluate": lambda _: main(
        ["evaluate", "run", "--protocol", "sprites-generation", "--num-clips", "2"]
    ),
    "export": lambda path: main(["export", "nova", str(path), "out"]),
    "load": arvid.load,
}


def refused(way: str, path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a way in says of a file; fails if it does not refuse it."""
    if way == "load":
        with pytest.raises(UserError) as caught:
            arvid.load(path)
        return str(caught.value)
    assert WAYS[way](path) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_a_checkpoint_names_is_not_executed(
    way: str,
    payload: str,
    honest: dict[str, Any],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for place in PLACES if way == "load" else PLACES[:2]:  # all load in one way
        path = tampered(honest, lambda d, place=place: put(d["config"], place, PAYLOADS[payload]))
        assert str(path) in refused(way, path, capsys)
    assert not (folder / "PWNED").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("name", ["evil.Evil", "os.system", "arvid.nn.text.re.purge", "evil"])
@pytest.mark.parametrize("way", WAYS)
def test_a_tokenizer_is_named_out_of_the_registry(
    way: str,
    name: str,
    honest: dict[str, Any],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = Path("run/checkpoints/last.ckpt")
    save_checkpoint(
        {**honest, TOKENIZER_KEY: {"name": name, "hyperparameters": {"command": "touch PWNED"}}},
        path,
    )
    assert name in refused(way, path, capsys)
    assert main(["reconstruct", "clip.mp4", "--tokenizer", str(path)]) == 2
    assert not (folder / "PWNED").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("nested", [False, True])
def test_a_validation_set_is_named_out_of_the_registry(
    payload: str,
    nested: bool,
    honest: dict[str, Any],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inner = PAYLOADS[payload]
    windows = {"class_path": "windows", "init_args": {"num_frames": 5, "dataset": inner}}
    path = tampered(honest, lambda d: d.update(validation=windows if nested else inner))
    refused("evaluate", path, capsys)
    assert not (folder / "PWNED").exists()
    assert "evil" not in sys.modules


def test_python_m_arvid_imports_nothing_of_the_working_folder(
    honest: dict[str, Any], folder: Path
) -> None:
    path = tampered(honest, lambda d: put(d["config"], "paradigm", PAYLOADS["class"]))
    done = subprocess.run(
        [sys.executable, "-m", "arvid", "sample", "--checkpoint", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--trust evil" in done.stderr
    assert not (folder / "PWNED").exists()


def test_configurations_of_fit_cannot_run_commands(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = ["--config=settings/sprites", "--config=paradigms/nova", "--config=sizes/debug"]
    for option in ("paradigm", "text"):
        payload = json.dumps(PAYLOADS["os.system"])
        assert main(["fit", *configs, f"--model.init_args.{option}={payload}"]) == 2
        assert "not allowed" in capsys.readouterr().err
    assert not (folder / "PWNED").exists()


def test_options_that_are_dataclasses_come_from_plain_data() -> None:
    given = {"clip": {"num_frames": 5, "size": 8}, "label": None}
    built = instantiate(WithOptions, given, what="it")
    assert built.clip == ClipSpec(num_frames=5, size=8)
    with pytest.raises(UserError, match="it cannot be built"):
        instantiate(WithOptions, {"clip": "evil.evil"}, what="it")


FRAME_WISE = """
from arvid.paradigms.next_block import NextBlock


class FrameWise(NextBlock):
    pass
"""


def test_a_class_of_ones_own_loads_where_its_package_is_trusted(
    honest: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "my_frame_wise.py").write_text(FRAME_WISE)

    def rename(description: dict[str, Any]) -> None:
        description["config"]["paradigm"]["class_path"] = "my_frame_wise.FrameWise"

    path = tampered(honest, rename)
    for way in WAYS:
        assert "--trust my_frame_wise" in refused(way, path, capsys)
    assert "my_frame_wise" not in sys.modules
    assert type(arvid.load(path, trust=["my_frame_wise"]).module.paradigm).__name__ == "FrameWise"
    sampled = ["sample", "--checkpoint", str(path), "--count=1", "--prompt=a red square"]
    assert main([*sampled, "--trust", "my_frame_wise"]) == 0
    assert main(sampled) == 2  # trust ends with the command
    with pytest.raises(UserError, match="not a package name"):
        arvid.load(path, trust=["my frame"])


def test_fit_says_which_classes_will_have_to_be_trusted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ARVID_CACHE", str(folder / "cache"))
    (folder / "my_wise.py").write_text(FRAME_WISE)
    configs = ["--config=settings/sprites", "--config=paradigms/next_block", "--config=sizes/debug"]
    few = ["--data.train.init_args.num_clips=8", "--data.val.init_args.num_clips=8"]
    more = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--run=mine"]
    paradigm = "--model.init_args.paradigm=my_wise.FrameWise"
    assert main(["fit", *configs, *few, *more, paradigm]) == 0
    assert "registers my_wise.FrameWise" in caplog.text
    assert main(["sample", "--checkpoint=mine", "--count=1"]) == 2
    assert main(["sample", "--checkpoint=mine", "--count=1", "--trust=my_wise"]) == 0
