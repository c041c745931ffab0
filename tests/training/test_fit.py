"""`arvid fit` as people run it: every combination trains and samples, a killed run goes on as if it had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from arvid.cli import main
from arvid.contracts import UserError
from arvid.paradigms.next_scale.scales import ScaleRms
from arvid.sampling.sample import Conditions, sample
from arvid.training.export import load_tokenizer
from arvid.training.generator_module import load_generator

Arguments = Callable[..., list[str]]
Losses = Callable[..., dict[int, float]]


@pytest.mark.parametrize("paradigm", ["nova", "next_block", "next_token"])
@pytest.mark.parametrize("token_type", ["continuous", "discrete"])
def test_every_combination_trains_and_samples(
    tmp_path: Path, small_fit: Arguments, paradigm: str, token_type: str
) -> None:
    given = small_fit(
        tmp_path / "run",
        paradigm,
        "--trainer.max_steps=3",
        f"--model.init_args.token_type={token_type}",
        "--model.init_args.sampling.diffusion_steps=2",
    )
    assert main(given) == 0
    model = load_generator(tmp_path / "run")
    assert model.trained is not None
    assert model.trained.steps == 3
    assert model.description["factors"] == {
        "paradigm": paradigm,
        "token_type": token_type,
        "size": "debug",
    }
    conditions = Conditions(num_clips=2, captions=["a small red square moves left"] * 2)
    videos = [sample(model, conditions, seed=s, progress=False) for s in (0, 0, 1)]
    assert videos[0].shape == (2, 9, 32, 32, 3)
    assert videos[0].dtype == np.uint8
    assert np.array_equal(videos[0], videos[1])
    assert not np.array_equal(videos[0], videos[2])


def test_the_configuration_that_a_run_saves_repeats_the_run(
    tmp_path: Path, small_fit: Arguments, losses_of: Losses
) -> None:
    given = small_fit(tmp_path / "run", "next_block", "--trainer.max_steps=3")
    assert main(given) == 0
    config = str(tmp_path / "run/logs/version_0/config.yaml")
    assert main(["fit", f"--config={config}", f"--run={tmp_path / 'again'}"]) == 0
    assert losses_of(tmp_path / "again") == losses_of(tmp_path / "run") != {}
    assert not (tmp_path / "run/logs/version_1").exists()
    assert main(["data", "check", config]) == 0


KILLED = """
import gc, os, signal
gc.disable()  # until main has imported the rest
from arvid.cli import main
from arvid.training.generator_module import GeneratorModule

shared_step = GeneratorModule.training_step

def training_step(self, *arguments):
    if self.global_step == 8:  # checkpoints were written after steps 3 and 6
        os.kill(os.getpid(), signal.SIGKILL)
    return shared_step(self, *arguments)

GeneratorModule.training_step = training_step
main()
"""


def test_a_killed_run_goes_on_as_if_unbroken(
    tmp_path: Path, small_fit: Arguments, losses_of: Losses
) -> None:
    torch.set_num_threads(1)  # as in the killed one, for the same sums
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    options = ["--trainer.max_steps=12", "--save_every_n_steps=3"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *small_fit(broken, "nova", *options)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (broken / "checkpoints/last.ckpt").is_file()
    for run in (broken, unbroken):
        assert main(small_fit(run, "nova", *options)) == 0
    assert len(list(broken.glob("logs/version_*"))) == 2
    last, expected = losses_of(broken), losses_of(unbroken)
    assert max(last) == 11
    resumed = {step: last[step] for step in last if step >= 6}
    assert len(resumed) == 6
    assert resumed == pytest.approx({step: expected[step] for step in resumed}, rel=1e-6)
    ours, theirs = (
        torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in (broken, unbroken)
    )
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_a_run_folder_of_another_configuration_is_refused(
    tmp_path: Path, small_fit: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    given = small_fit(tmp_path / "run", "next_block", "--trainer.max_steps=1")
    assert main(given) == 0
    assert main([*given, "--data.clips_per_step=2"]) == 2
    message = capsys.readouterr().err
    assert "data.clips_per_step: 4 there, 2 here" in message
    assert "Traceback" not in message


def test_a_damaged_checkpoint_is_refused_and_an_earlier_one_named(
    tmp_path: Path, small_fit: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    given = small_fit(tmp_path, "nova", "--trainer.max_steps=2", "--save_every_n_steps=1")
    assert main(given) == 0
    last = tmp_path / "checkpoints/last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)  # of step-0000002.ckpt, too
    assert main(given) == 2
    message = capsys.readouterr().err
    assert "last.ckpt is damaged" in message
    earlier = last.with_name("step-0000001.ckpt")
    assert f"An earlier one: --ckpt_path {earlier}" in message
    assert main([*given, f"--ckpt_path={earlier}"]) == 0


def test_a_link_to_a_checkpoint_that_is_gone_does_not_begin_the_run_anew(
    tmp_path: Path, small_fit: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier, last = (tmp_path / "checkpoints" / name for name in ("step-0000002.ckpt", "last.ckpt"))
    earlier.mkdir(parents=True)
    (earlier / "checkpoint.pt").touch()
    last.symlink_to("step-0000004.ckpt")
    given = small_fit(tmp_path, "nova", "--trainer.max_steps=1")
    for _ in ("gone", "without its checkpoint.pt"):
        assert main(given) == 2
        message = capsys.readouterr().err
        assert (
            f"step-0000004.ckpt is gone or incomplete. An earlier one: --ckpt_path {earlier}"
            in message
        )
        last.with_name("step-0000004.ckpt").mkdir(exist_ok=True)


def test_tokenizers_train_by_the_same_command(
    tmp_path: Path, small_tokenizer_fit: Arguments
) -> None:
    for name in ("vae3d", "magvit_fsq"):
        run = tmp_path / name
        assert main(small_tokenizer_fit(run, name, "--trainer.max_steps=2")) == 0
        tokenizer = load_tokenizer(run / "checkpoints/last.ckpt")
        assert tokenizer.spec.strides == (4, 4, 4)
        with pytest.raises(UserError, match="tokenizer's checkpoint"):
            load_generator(run)


def test_wandb_and_tensorboard_by_config(
    tmp_path: Path, small_fit: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tmp_path / "loggers.yaml"
    config.write_text(
        f"""
trainer:
  logger:
    - class_path: lightning.pytorch.loggers.WandbLogger
      init_args: {{save_dir: {tmp_path}, project: arvid}}
    - class_path: lightning.pytorch.loggers.TensorBoardLogger
      init_args: {{save_dir: {tmp_path / "tensorboard"}}}
  callbacks:
    - class_path: arvid.training.callbacks.SampleVideos
      init_args: {{every_n_steps: 2, num_clips: 2}}
"""
    )
    run = tmp_path / "run"
    given = small_fit(run, "next_block", f"--config={config}", "--trainer.max_steps=2")
    assert main(given) == 0
    assert list(tmp_path.glob("wandb/offline-run-*"))
    assert list(tmp_path.glob("tensorboard/**/events.*"))
    assert list(run.glob("logs/version_0/metrics.csv"))
    assert (run / "samples/step-0000002.mp4").stat().st_size > 0


def test_tokens_are_encoded_once(
    tmp_path: Path, small_fit: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    assert main(small_fit(tmp_path / "a", "next_block", "--trainer.max_steps=1")) == 0
    shards = sorted((tmp_path / "cache/tokens").glob("*/*.safetensors"))
    times = [shard.stat().st_mtime_ns for shard in shards]
    assert len(shards) == 2
    assert main(small_fit(tmp_path / "b", "next_token", "--trainer.max_steps=1")) == 0
    assert sorted((tmp_path / "cache/tokens").glob("*/*.safetensors")) == shards
    assert [shard.stat().st_mtime_ns for shard in shards] == times


def test_scales_are_measured_in_each_step(tmp_path: Path, small_fit: Arguments) -> None:
    """Two batches make a step. The training ends before its first validation."""
    given = small_fit(
        tmp_path,
        "next_scale",
        "--model.init_args.token_type=continuous",
        "--data.batch_size=2",
        "--trainer.max_steps=3",
        "--trainer.val_check_interval=4",
        "--trainer.log_every_n_steps=3",
    )
    assert main(given) == 0
    spread = load_generator(tmp_path).paradigm.spread
    assert isinstance(spread, ScaleRms)
    assert spread.num_steps == 3
    assert (spread.values != 1).all()
    assert (spread.sums == 0).all()
