"""`arvid fit` in several processes: it starts in every way, and computes what one process computes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

FIT = [
    "fit",
    "--config=settings/sprites",
    "--config=sizes/debug",
    "--data.train.init_args.num_clips=32",
    "--data.val.init_args.num_clips=9",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
    "--trainer.val_check_interval=2",
    "--trainer.max_steps=2",
]
SCRIPTS = Path(sys.executable).parent
CODE = "from arvid.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
WAYS = {
    "console script": [SCRIPTS / "arvid"],
    "module": [sys.executable, "-m", "arvid"],
    "code": [sys.executable, "-c", CODE],
}


def logged(run: Path, name: str) -> dict[int, float]:
    """Values of a name by step over all logs of a run; of each step once."""
    found: dict[int, float] = {}
    for log in sorted(run.glob("logs/version_*/metrics.csv")):
        with open(log, newline="") as file:
            for row in csv.DictReader(file):
                if row.get(name):
                    found[int(row["step"])] = float(row[name])
    return found


def run_alone(command: list[Any], folder: Path, **variables: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", WAYS)  # each imports everything twice, as users' processes do
def test_two_devices_start_from_an_empty_folder(way: str, tmp_path: Path) -> None:
    options = ["--config=paradigms/next_block", "--trainer.devices=2", "--trainer.strategy=ddp"]
    run_alone([*WAYS[way], *FIT, *options, "--run", "run"], tmp_path)
    assert len(logged(tmp_path / "run", "train_loss")) == 2
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()


def test_the_documented_line_of_torchrun(tmp_path: Path) -> None:
    command = [SCRIPTS / "torchrun", "--nproc-per-node", "2", "-m", "--", "arvid"]
    run_alone([*command, *FIT, "--config=paradigms/nova", "--run", "run"], tmp_path)
    assert len(logged(tmp_path / "run", "train_loss")) == 2


def test_srun_starts_ranks_that_train_together(tmp_path: Path, together: Any) -> None:
    options = ["--config=paradigms/next_block", "--run=run"]
    codes, outputs = together.run([*FIT, *options], 2, tmp_path, by="srun")
    assert codes == [0, 0], outputs
    assert len(list(tmp_path.glob("run/logs/version_*"))) == 1
    assert len(logged(tmp_path / "run", "train_loss")) == 2


@pytest.mark.parametrize(
    ("paradigm", "token_type"),
    [
        *product(["nova", "next_block", "next_token"], ["continuous", "discrete"]),
        ("next_scale", "continuous"),  # measures its targets over all processes
    ],
)
def test_any_number_of_processes_computes_the_same_losses(
    paradigm: str, token_type: str, tmp_path: Path, together: Any
) -> None:
    """Two processes share each micro-batch of six clips; three processes one of six, then of two."""
    options = [
        f"--config=paradigms/{paradigm}",
        f"--model.init_args.token_type={token_type}",
        "--data.clips_per_step=6",
    ]
    for count, size in ((1, 6), (2, 6), (3, 6), (1, 2), (3, 2)):
        given = [*FIT, *options, f"--data.batch_size={size}", f"--run={count}-{size}"]
        codes, outputs = together.run(given, count, tmp_path)
        assert codes == [0] * count, outputs
    for alone, others in (("1-6", ("2-6", "3-6")), ("1-2", ("3-2",))):
        for name in ("train_loss", "val_loss"):
            expected = logged(tmp_path / alone, name)
            assert len(expected) == (2 if name == "train_loss" else 1)
            for other in others:
                assert logged(tmp_path / other, name) == pytest.approx(expected, rel=1e-5)


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, together: Any) -> None:
    options = [
        "--config=paradigms/nova",
        "--trainer.max_steps=7",
        "--trainer.val_check_interval=3",
        "--save_every_n_steps=1",
        "--data.clips_per_step=8",
        "--data.batch_size=4",
    ]
    codes, outputs = together.run([*FIT, *options, "--run=unbroken"], 1, tmp_path)
    assert codes == [0], outputs
    for count, killed_at in ((2, "2"), (1, "5"), (2, None)):
        more = {} if killed_at is None else {"ARVID_TEST_KILL_AT": killed_at}
        codes, outputs = together.run([*FIT, *options, "--run=broken"], count, tmp_path, **more)
        assert codes == [0 if killed_at is None else -signal.SIGKILL] * count, outputs
    for name, steps in (("train_loss", 7), ("val_loss", 2)):
        expected = logged(tmp_path / "unbroken", name)
        assert len(expected) == steps
        assert logged(tmp_path / "broken", name) == pytest.approx(expected, rel=1e-5)
    weights = [
        torch.load(tmp_path / f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("unbroken", "broken")
    ]
    for name, expected_weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected_weight, rtol=1e-3, atol=1e-4)


def test_tokenizers_validate_together(tmp_path: Path, together: Any) -> None:
    """Nine clips in batches of four: the last has one clip, and three processes."""
    given = [
        "fit",
        "--config=tokenizers/sprites-magvit_fsq",
        "--config=settings/sprites-tokenizers",
        *FIT[3:],
        "--data.batch_size=4",
        "--data.clips_per_step=12",
        "--trainer.max_steps=1",
        "--trainer.val_check_interval=1",
    ]
    for count in (1, 3):
        codes, outputs = together.run([*given, f"--run={count}"], count, tmp_path)
        assert codes == [0] * count, outputs
    for name in ("val_loss", "val_psnr", "val_codebook_share", "val_codebook_perplexity"):
        expected = logged(tmp_path / "1", name)
        assert expected
        assert logged(tmp_path / "3", name) == pytest.approx(expected, rel=1e-5), name


def test_a_step_that_cannot_be_shared_is_refused(tmp_path: Path, together: Any) -> None:
    codes, outputs = together.run([*FIT, "--config=paradigms/nova"], 3, tmp_path)
    assert codes == [2, 2, 2]
    assert "3 processes cannot share the 8 clips of a step" in outputs[0]


def test_a_training_in_the_same_folder_is_refused(tmp_path: Path, together: Any) -> None:
    from arvid.training.run_lock import run_lock

    with run_lock(tmp_path / "run"):
        codes, outputs = together.run([*FIT, "--config=paradigms/nova", "--run=run"], 1, tmp_path)
    assert codes == [2]
    assert f"in use: process {os.getpid()} on" in outputs[0]
