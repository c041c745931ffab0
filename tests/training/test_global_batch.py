"""The clips of a step in a run: what counts steps with accumulated gradients, and runs that an older arvid began."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from arvid.cli import main
from arvid.training.global_batch import clips_per_step_of_older
from arvid.training.setting import _clips_per_step

FIT = [
    "fit",
    "--config=settings/sprites",
    "--config=paradigms/next_block",
    "--config=sizes/debug",
    "--data.train.init_args.num_clips=16",
    "--data.val.init_args.num_clips=4",
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--trainer.log_every_n_steps=2",
]


def write_config(run: Path, version: int, config: dict[str, Any]) -> None:
    path = run / f"logs/version_{version}/config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(config))


def test_validation_and_logging_count_steps(tmp_path: Path) -> None:
    """Four batches make a step."""
    assert main([*FIT, "--data.batch_size=2", f"--run={tmp_path}"]) == 0
    with open(tmp_path / "logs/version_0/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["train_loss"]] == ["1", "3"]
    assert [row["step"] for row in rows if row["val_loss"]] == ["1", "3"]


def test_the_logged_loss_is_the_mean_of_the_step(tmp_path: Path) -> None:
    """Without dropout and dropped conditions a discrete loss has no noise: batches of any size have one mean."""
    found = []
    exact = [
        f"--model.init_args.paradigm.init_args.{n}=0" for n in ("dropout", "condition_dropout")
    ]
    for size in (8, 2):
        run = tmp_path / str(size)
        options = ["--trainer.max_steps=2", f"--data.batch_size={size}", f"--run={run}"]
        assert main([*FIT, *exact, *options]) == 0
        with open(run / "logs/version_0/metrics.csv", newline="") as file:
            found.append([float(r["train_loss"]) for r in csv.DictReader(file) if r["train_loss"]])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_accumulation_that_contradicts_the_clips_of_a_step_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data.batch_size=4", "--trainer.accumulate_grad_batches=3", f"--run={tmp_path}"]
    assert main([*FIT, *given]) == 2
    assert "needs 2 batches of 4 on each of 1 processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"data": {"batch_size": 4}, "trainer": {"accumulate_grad_batches": 1}}, 4),
        ({"data": {"batch_size": 4}, "trainer": {"accumulate_grad_batches": 64}}, 256),
        ({"data": {"batch_size": 4, "clips_per_step": None}, "trainer": {}}, None),
        ({"data": {"batch_size": 4, "clips_per_step": 8}, "trainer": {}}, None),
        ({"data": None}, None),
    ],
)
def test_an_older_run_goes_on_with_its_clips_of_a_step(
    tmp_path: Path, config: dict[str, Any], expected: int | None
) -> None:
    assert clips_per_step_of_older(tmp_path, 1) is None
    write_config(tmp_path, 0, config)
    assert clips_per_step_of_older(tmp_path, 1) == expected


def test_the_command_of_an_older_run_means_what_it_meant(tmp_path: Path) -> None:
    """`--data.batch_size 4` was four clips a step, before the setting named eight."""
    older = {"data": {"batch_size": 4}, "trainer": {"accumulate_grad_batches": 1}}
    write_config(tmp_path, 0, older)
    options = ["--data.batch_size=4", f"--run={tmp_path}", "--save_every_n_steps=2"]
    for _ in range(2):  # the second time another configuration lies beside it
        assert main([*FIT, *options]) == 0
        with open(sorted(tmp_path.glob("logs/version_*/config.yaml"))[-1]) as file:
            assert yaml.safe_load(file)["data"]["clips_per_step"] == 4


@pytest.mark.parametrize(("named", "expected"), [(None, 24), (8, 8)])
def test_the_setting_holds_the_clips_of_a_step(named: int | None, expected: int) -> None:
    config = {
        "data": {"clips_per_step": named, "batch_size": 4},
        "trainer": {"accumulate_grad_batches": 3},
    }
    assert _clips_per_step(config, num_processes=2) == expected
