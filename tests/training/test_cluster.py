"""The lines of docs/cluster.md start trainings: with simulated SLURM, on the CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/cluster.md").read_text()
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_NTASKS=2 SLURM_NODELIST=localhost SLURM_NODEID=0 SLURM_NNODES=1
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || exit $?; done
"""
SMALL = (
    "--config=sizes/debug",
    "--data.train.init_args.num_clips=16",
    "--data.val.init_args.num_clips=4",
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
)


def line(beginning: str) -> str:
    """The page's command that begins so."""
    (found,) = re.findall(rf"^    ({re.escape(beginning)}.*--run runs/nova.*)$", PAGE, re.MULTILINE)
    return str(found)


def run(command: list[str], folder: Path, **variables: str) -> None:
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **variables}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_template_for_slurm_trains(tmp_path: Path, free_port: int) -> None:
    """Started as sbatch starts it, with an srun that starts two tasks."""
    (template,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "train.sh").write_text(template)
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    given = line("sbatch train.sh").split()[2:]
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "arvid", "MASTER_PORT": str(free_port)}
    run(["bash", "train.sh", *given, *SMALL], tmp_path, **job)
    assert (tmp_path / "runs/nova/checkpoints/last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("beginning", ["torchrun", "arvid fit"])
def test_the_other_lines_train(beginning: str, tmp_path: Path) -> None:
    """With two processes in place of eight; `arvid fit` is the line with `sharded`, and its model is exported."""
    command = line(beginning) if beginning == "torchrun" else ""
    if beginning == "arvid fit":
        lines = re.findall(r"^    (arvid fit .*sharded)$", PAGE, re.MULTILINE)
        command = f"{lines[0]} --trainer.devices 2"
    run([*command.replace("node 8", "node 2").split(), *SMALL], tmp_path)
    (export,) = re.findall(r"^    (arvid export .*)$", PAGE, re.MULTILINE)
    run(export.split(), tmp_path)
    assert (tmp_path / "nova-model/model.ckpt").is_file()
