"""Signals: a training saves after its step and leaves with its own exit code; the same command resumes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arvid.cli import main
from arvid.data import datamodule
from arvid.training.generator_module import GeneratorModule

Arguments = Callable[..., list[str]]
Losses = Callable[..., dict[int, float]]
CODES = {signal.SIGINT: 130, signal.SIGUSR1: 138, signal.SIGTERM: 143}
OPTIONS = ("--trainer.max_steps=6", "--save_every_n_steps=100")


def send_at(monkeypatch: pytest.MonkeyPatch, step: int, *numbers: int) -> None:
    """Let the process get signals in the midst of a step."""
    training_step = GeneratorModule.training_step

    def patched(self: GeneratorModule, *arguments: Any) -> Any:
        if self.global_step == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return training_step(self, *arguments)

    monkeypatch.setattr(GeneratorModule, "training_step", patched)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: dict[str, str]) -> Path:
    """A job of SLURM, and the file in which its `scontrol` puts down what it is asked for."""
    asked = tmp_path / "asked"
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    return asked


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, small_fit: Arguments) -> Path:
    run = tmp_path_factory.mktemp("unbroken")
    assert main(small_fit(run, "nova", *OPTIONS)) == 0
    return run


@pytest.mark.parametrize("number", CODES)
def test_a_signal_saves_and_the_same_command_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    small_fit: Arguments,
    losses_of: Losses,
    unbroken: Path,
    queue: Path,
    number: signal.Signals,
) -> None:
    run = tmp_path / "run"
    given = small_fit(run, "nova", *OPTIONS)
    former = signal.getsignal(number)
    with monkeypatch.context() as patch:
        send_at(patch, 3, number)
        with pytest.raises(SystemExit) as left:
            main(given)
    assert left.value.code == CODES[number]
    assert f"{number.name}: saving after this step" in capfd.readouterr().err
    assert signal.getsignal(number) == former
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert sorted(losses_of(run)) == [0, 1, 2, 3]
    assert sorted(losses_of(run, "val_loss")) == [1, 3]  # that of the last step too
    assert queue.exists() == (number == signal.SIGUSR1)
    if number == signal.SIGUSR1:
        assert queue.read_text() == "requeue 4711\n"
        assert not list(run.glob("hpc_ckpt*"))
    assert main(given) == 0
    assert losses_of(run) == losses_of(unbroken)  # nothing was done twice
    assert losses_of(run, "val_loss") == losses_of(unbroken, "val_loss")
    ours, theirs = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in (run, unbroken)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_signal_in_the_last_step_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_fit: Arguments
) -> None:
    send_at(monkeypatch, 1, signal.SIGTERM)
    assert main(small_fit(tmp_path, "nova", "--trainer.max_steps=2")) == 0


def test_a_second_signal_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_fit: Arguments
) -> None:
    send_at(monkeypatch, 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(SystemExit) as left:
        main(small_fit(tmp_path, "nova", *OPTIONS))
    assert left.value.code == 130
    assert not (tmp_path / "checkpoints/last.ckpt").exists()


@pytest.mark.parametrize("number", CODES)
def test_a_signal_while_clips_are_encoded_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    small_fit: Arguments,
    queue: Path,
    number: signal.Signals,
) -> None:
    def encode(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(datamodule, "encode_dataset", encode)
    with pytest.raises(SystemExit) as left:
        main(small_fit(tmp_path / "run", "nova", *OPTIONS))
    assert left.value.code == CODES[number]
    assert f"ended by {number.name}; the same command resumes" in capfd.readouterr().err
    assert queue.exists() == (number == signal.SIGUSR1)


def test_a_job_that_cannot_be_requeued_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    small_fit: Arguments,
    queue: Path,
) -> None:
    (tmp_path / "bin/scontrol").write_text("#!/bin/sh\nexit 3\n")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "47")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    send_at(monkeypatch, 1, signal.SIGUSR1)
    with pytest.raises(SystemExit) as left:
        main(small_fit(tmp_path / "run", "nova", *OPTIONS))
    assert left.value.code == 138
    assert "the job 47_2 was not put back into the queue" in capfd.readouterr().err
