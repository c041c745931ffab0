"""Checkpoints whose content is not what was written, or not what a checkpoint holds."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import arvid
from arvid.cli import main
from arvid.contracts import UserError
from arvid.training.checkpoint_io import SEALED, read_checkpoint, save_checkpoint, verify, verifying
from arvid.training.export import load_tokenizer, save_tokenizer
from arvid.training.keys import CHECKPOINT_KEY, TOKENIZER_KEY
from arvid.training.one_file import TRAINING_ONLY

JUNK: tuple[Any, ...] = (None, 3, -1.5, float("nan"), "x", [], {}, [1], {"x": 1}, b"x", True)


@pytest.fixture(scope="module")
def honest(trained_run: Path) -> dict[str, Any]:
    """A checkpoint's content, as `arvid export` writes it: without what only a training that goes on reads."""
    content: dict[str, Any] = torch.load(trained_run / "checkpoints/last.ckpt", weights_only=True)
    return {key: value for key, value in content.items() if key not in TRAINING_ONLY}


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def read(path: Path) -> None:
    with verifying(path):
        read_checkpoint(path)


def small_checkpoint(path: Path) -> Path:
    save_checkpoint({"state_dict": {"w": torch.arange(40.0)}, "name": "x"}, path)
    return path


def small_tokenizer(path: Path) -> Path:
    save_tokenizer(load_tokenizer("sprites-magvit_fsq"), path, {"from": "test"})
    return path


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = small_checkpoint(tmp_path / "a.ckpt")
    read(path)
    torch.testing.assert_close(
        read_checkpoint(path)["state_dict"]["w"], torch.arange(40.0), rtol=0, atol=0
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = small_checkpoint(tmp_path / "a.ckpt")
    whole = path.read_bytes()
    for bit in [
        *random.sample(range(8 * len(whole)), 400),
        *range(8 * (len(whole) - 100), 8 * len(whole)),
    ]:
        path.write_bytes(whole)
        flip(path, bit)
        with pytest.raises(UserError, match=r"a\.ckpt"):
            read(path)


def test_flipped_bits_of_a_tokenizer_file_are_noticed(tmp_path: Path) -> None:
    path = small_tokenizer(tmp_path / "t.safetensors")
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    bits = [*random.sample(range(8 * len(whole)), 20), *random.sample(range(8 * header), 40)]
    for bit in bits:
        path.write_bytes(whole)
        flip(path, bit)
        with pytest.raises(UserError, match=r"t\.safetensors"):
            load_tokenizer(path)


def test_a_flipped_weight_of_a_checkpoint_without_a_seal_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, path)
    verify(path)
    flip(path, 8 * (path.read_bytes().index(bytes(4000)) + 2000))
    with pytest.raises(UserError, match=r"damaged: .*data/0"):
        verify(path)


def test_training_does_not_go_on_from_a_damaged_checkpoint(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    path = run / "checkpoints/last.ckpt"
    flip(path, 8 * (path.stat().st_size // 2))
    configs = [f"--config={name}" for name in ("settings/sprites", "paradigms/next_block")]
    for command in (
        ["fit", *configs, "--config=sizes/debug", "--trainer.accelerator=cpu", f"--run={run}"],
        ["sample", "--checkpoint", str(run)],
        ["evaluate", str(run), "--protocol", "sprites-generation"],
        ["reconstruct", "x.mp4", "--tokenizer", str(path)],
    ):
        assert main(command) == 2
        assert f"{path} is damaged" in capsys.readouterr().err


def changed(honest: dict[str, Any], key: str, value: Any, *, remove: bool) -> dict[str, Any]:
    """The content with another value at a key, which behind `arvid/` is one of the description."""
    content = dict(honest)
    description = json.loads(content[CHECKPOINT_KEY])
    values = content
    if key.startswith("arvid/"):
        *outer, key = key.split("/")[1:]
        values = description
        for part in outer:
            values = values[part]
    if remove:
        values.pop(key, None)
    else:
        values[key] = value
    if values is not content:
        content[CHECKPOINT_KEY] = json.dumps(description, default=str)
    return content


KEYS = (
    *(CHECKPOINT_KEY, TOKENIZER_KEY, "state_dict", "global_step", "callbacks"),
    *(f"arvid/{key}" for key in ("config", "setting", "factors", "options", "setting_hash")),
    *(
        f"arvid/config/{key}"
        for key in ("paradigm", "text", "token_type", "size", "clip_shape", "optimizer", "sampling")
    ),
    "arvid/setting/data.clips_per_step",
    "arvid/config/paradigm/init_args",
    "arvid/config/num_classes",
)


@pytest.mark.parametrize("key", KEYS)
def test_malformed_checkpoints_are_refused_or_read(
    key: str, honest: dict[str, Any], tmp_path: Path
) -> None:
    """Each of more than a hundred ends as a model, or as an error that names the file, never in a traceback."""
    path = tmp_path / "odd.ckpt"
    for i, value in enumerate((None, *JUNK)):
        save_checkpoint(changed(honest, key, value, remove=i == 0), path)
        try:
            arvid.load(path)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017  # some are read
        assert main(["sample", "--checkpoint", str(path), "--label=0"]) == 2  # it has no labels


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    "spoil",
    [truncated, lambda _: b"", lambda _: b"junk", lambda c: c[100:], lambda c: c + b"more"],
)
def test_files_that_are_no_checkpoints(
    spoil: Callable[[bytes], bytes], trained_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "odd.ckpt"
    path.write_bytes(spoil((trained_run / "checkpoints/last.ckpt").read_bytes()))
    with pytest.raises(UserError, match=r"odd\.ckpt"):
        arvid.load(path)
    with pytest.raises(UserError, match=r"odd\.ckpt"):
        load_tokenizer(path)


def test_what_is_no_dict_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "odd.ckpt"
    for content in (3, [1], torch.zeros(2), {"a": 1}, {1: 2}, {SEALED: True}):
        torch.save(content, path)
        with pytest.raises(UserError, match=r"odd\.ckpt"):
            arvid.load(path)
