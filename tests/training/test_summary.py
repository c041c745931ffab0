"""What a training prints, which callbacks several configurations give, and which wandb run it continues."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from arvid.cli import main
from arvid.training.cli import merged_callbacks, parse_fit
from arvid.training.summary import duration
from arvid.training.wandb_run import LogConfiguration, continue_wandb

Arguments = Callable[..., list[str]]


def test_a_training_says_what_it_trains_and_what_comes_next(
    tmp_path: Path, small_fit: Arguments, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    given = small_fit(run, "nova", "--trainer.max_steps=4", "--data.batch_size=2")
    assert main(given) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    head = dict(line.split(maxsplit=1) for line in lines[:6])
    assert list(head) == ["model", "setting", "data", "step", "length", "run"]
    assert head["model"].startswith("nova, continuous tokens, size debug: 195,104 trained")
    assert head["data"].startswith("16 training and 8 validation clips of 9 frames of 32x32")
    assert head["step"].startswith("4 clips: 2 batches of 2 on 1 process (cpu")
    assert (run / "checkpoints/last.ckpt").is_file()
    assert head["run"].endswith("losses in logs/version_0/metrics.csv")
    assert lines[6].startswith("Trained 4 steps in 0:")
    assert f"  arvid evaluate {run} --protocol sprites-generation" in lines
    progress = [line for line in err.splitlines() if line.startswith("run: 4/4 steps")]
    assert len(progress) == 1
    assert "train_loss" in progress[0]
    assert "val_loss" in progress[0]
    assert not any(word in out + err for word in ("\r", "TPU", "Tip"))


def test_a_duration_has_hours_only_if_needed() -> None:
    assert duration(59.6) == "1:00"
    assert duration(3725) == "1:02:05"


def test_callbacks_of_a_second_configuration_are_added(tmp_path: Path) -> None:
    added = tmp_path / "samples.yaml"
    added.write_text(
        "trainer:\n  callbacks:\n    - class_path: arvid.training.callbacks.SampleVideos\n"
        "      init_args: {every_n_steps: 7}\n"
    )
    names = ["settings/sprites", "paradigms/nova", "sizes/debug", str(added)]
    found = parse_fit([f"--config={name}" for name in names])["trainer"]["callbacks"]
    classes = [callback["class_path"].rpartition(".")[2] for callback in found]
    assert classes == ["EMAWeightAveraging", "SampleVideos"]
    assert found[0]["init_args"]["decay"] == 0.98


def test_a_later_callback_replaces_an_earlier_one_of_its_class() -> None:
    earlier = [{"class_path": "a", "init_args": {"x": 1}}, {"class_path": "b"}]
    later = [{"class_path": "a", "init_args": {"x": 2}}, {"class_path": "c"}]
    assert merged_callbacks(earlier, later) == [earlier[1], *later]


def _wandb(**options: Any) -> dict[str, Any]:
    return {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": options}


def test_a_run_folder_has_one_wandb_run(tmp_path: Path) -> None:
    loggers = [_wandb(), _wandb(id="mine", name="named"), {"class_path": "CSV", "init_args": {}}]
    again, elsewhere = _wandb(), _wandb()
    continue_wandb(loggers, tmp_path / "run")
    continue_wandb([again], tmp_path / "run")
    continue_wandb([elsewhere], tmp_path / "other")
    first = loggers[0]["init_args"]
    assert again["init_args"] == first
    assert first["name"] == "run"
    assert elsewhere["init_args"]["id"] != first["id"]
    assert loggers[1]["init_args"] == {"id": "mine", "name": "named"}
    assert loggers[2]["init_args"] == {}


def test_loggers_get_the_configuration_and_the_setting_hash() -> None:
    logged: list[dict[str, Any]] = []
    trainer: Any = SimpleNamespace(loggers=[SimpleNamespace(log_hyperparams=logged.append)])
    module: Any = SimpleNamespace(description={"setting_hash": "abc"})
    LogConfiguration({"data": {"seed": 0}}).on_train_start(trainer, module)
    assert logged == [{"data": {"seed": 0}, "setting_hash": "abc"}]
