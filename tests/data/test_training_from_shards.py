"""`arvid encode` and `arvid fit`: training from shards, without the clips, equals training from the clips."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from arvid.cli import main

SETTING = [
    "--config=settings/sprites",
    "--config=paradigms/next_block",
    "--config=sizes/debug",
    "--data.clips_per_step=4",
    "--trainer.max_steps=5",
    "--trainer.val_check_interval=5",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
]
CLIPS = ["--data.train.init_args.num_clips=14", "--data.val.init_args.num_clips=6"]


def losses(run: Path) -> list[tuple[str, str]]:
    """Training and validation loss of each step, from the log."""
    with next(run.glob("logs/version_0/metrics.csv")).open(newline="") as file:
        return [(row["train_loss"], row["val_loss"]) for row in csv.DictReader(file)]


def test_training_from_shards_equals_training_from_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "setting.yaml"
    config.write_text(
        "data: {train: {init_args: {num_clips: 14}}, val: {init_args: {num_clips: 6}}}"
    )
    shards = tmp_path / "shards"
    encode = ["encode", *SETTING[:3], f"--config={config}", f"--out={shards}"]
    assert main([*encode, "--shard=2/2"]) == 0
    assert "except 1 that other parts make" in capsys.readouterr().out
    assert main(encode) == 0
    assert f"Token shards are in {shards / 'val'}." in capsys.readouterr().out
    assert main(["fit", *SETTING, *CLIPS, f"--run={tmp_path / 'clips'}"]) == 0
    expected = losses(tmp_path / "clips")
    assert len(expected) == 6
    given = [
        argument
        for part in ("train", "val")
        for argument in (
            f"--data.{part}=arvid.data.token_shards.TokenShards",
            f"--data.{part}.init_args.path={shards / part}",
        )
    ]
    for num_workers in (0, 2):
        run = tmp_path / f"shards-{num_workers}"
        assert (
            main(["fit", *SETTING, *given, f"--data.num_workers={num_workers}", f"--run={run}"])
            == 0
        )
        assert losses(run) == expected


def test_damaged_tokens_end_in_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    config = tmp_path / "setting.yaml"
    config.write_text(
        "data: {train: {init_args: {num_clips: 14}}, val: {init_args: {num_clips: 6}}}"
    )
    encode = ["encode", *SETTING[:3], f"--config={config}"]
    assert main(encode) == 0
    for path in (tmp_path / "cache/tokens").rglob("*.safetensors"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        for command in (encode, ["fit", *SETTING, *CLIPS, f"--run={tmp_path / 'run'}"]):
            assert main(command) == 2
            assert f"{path} is damaged" in capsys.readouterr().err
        path.write_bytes(whole)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "x/y"])
def test_a_part_that_there_is_not(shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", *SETTING[:3], f"--shard={shard}"]) == 2
    assert "--shard must be I/N with I from 1 to N" in capsys.readouterr().err
