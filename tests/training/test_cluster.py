"""The lines of docs/cluster.md train on the CPU: with simulated SLURM, and two launchers in place of two machines."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from arvid.cli import main

PAGE = (Path(__file__).parents[2] / "docs/cluster.md").read_text()
SRUN = """#!/bin/bash
# Two nodes with a task each. As srun does, ends with the highest code of a task.
while [[ $1 == --* ]]; do shift; done
export SLURM_NTASKS=2 SLURM_NODELIST=localhost,localhost SLURM_NNODES=2 SLURM_LOCALID=0
for node in 0 1; do SLURM_PROCID=$node SLURM_NODEID=$node "$@" & pids+=($!); done
code=0
for pid in "${pids[@]}"; do wait "$pid"; code=$(($? > code ? $? : code)); done
exit $code
"""
SCONTROL = '#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\n'
SIGNALLED = """#!{python}
# arvid; if FIRST is set, the first task gets SIGUSR1 in the midst of the first step, as SLURM sends it.
import os, signal, sys
from arvid.cli import main
from arvid.training.generator_module import GeneratorModule

training_step = GeneratorModule.training_step

def patched(self, *arguments):
    if "FIRST" in os.environ and os.environ["SLURM_PROCID"] == "0":
        os.kill(os.getpid(), signal.SIGUSR1)
    return training_step(self, *arguments)

GeneratorModule.training_step = patched
sys.exit(main(sys.argv[1:]))
"""
SMALL = (
    "--config=sizes/debug",
    "--data.train.init_args.num_clips=16",
    "--data.val.init_args.num_clips=4",
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
)


def line(beginning: str, end: str = "--run runs/nova") -> str:
    """The page's command that begins and ends so."""
    (found,) = re.findall(rf"^    ({re.escape(beginning)}.*{re.escape(end)})$", PAGE, re.MULTILINE)
    return str(found)


def start(command: list[str], folder: Path, **variables: str) -> subprocess.Popen[str]:
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **variables}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)  # type: ignore[call-overload]


def run(command: list[str], folder: Path, *, code: int = 0, **variables: str) -> None:
    """Run a command to its end, which must have this exit code."""
    process = start(command, folder, **variables)
    _, errors = process.communicate()
    assert process.returncode == code, errors


def write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def sbatch(folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """Write the template and an srun of two nodes. Returns the command that sbatch starts, and variables of its job."""
    (template,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    write_script(folder / "train.sh", template)
    write_script(folder / "srun", SRUN)
    given = line("sbatch train.sh").split()[2:]
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "arvid", "MASTER_PORT": str(port)}
    return ["bash", "train.sh", *given, *SMALL], job


def test_the_template_for_slurm_trains_on_two_nodes(tmp_path: Path, free_port: int) -> None:
    command, job = sbatch(tmp_path, free_port)
    run([*command, "--wait_minutes=30"], tmp_path, **job)
    assert (tmp_path / "runs/nova/checkpoints/last.ckpt").is_file()


@pytest.mark.slow
def test_the_job_of_the_template_is_requeued_and_resumes(tmp_path: Path, free_port: int) -> None:
    """A signal to one task saves and ends both; the same script goes on."""
    command, job = sbatch(tmp_path, free_port)
    command += ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    write_script(tmp_path / "scontrol", SCONTROL)
    write_script(tmp_path / "arvid", SIGNALLED.format(python=sys.executable))
    last = tmp_path / "runs/nova/checkpoints/last.ckpt"
    for code, step, more in ((138, 1, {"FIRST": "1"}), (0, 2, {})):
        run(command, tmp_path, code=code, **job, **more)
        assert torch.load(last, weights_only=True)["global_step"] == step
        assert (tmp_path / "asked").read_text() == "requeue 4711\n"


def test_the_line_for_one_gpu_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*line("arvid fit", "--trainer.devices 1").split()[1:], *SMALL]) == 0
    assert (tmp_path / "runs/nova/checkpoints/last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("beginning", ["torchrun --nproc-per-node", "arvid fit"])
def test_the_other_lines_train(beginning: str, tmp_path: Path) -> None:
    """With two processes in place of eight; `arvid fit` is the line with `sharded`, and its model is exported."""
    if beginning == "arvid fit":
        command = line(beginning, "sharded") + " --trainer.devices 2"
    else:
        command = line(beginning).replace("node 8", "node 2")
    run([*command.split(), *SMALL], tmp_path)
    run(line("arvid export", "nova-model").split(), tmp_path)
    assert (tmp_path / "nova-model/model.ckpt").is_file()


@pytest.mark.slow
def test_two_launchers_that_meet_train_with_a_copy_each(tmp_path: Path, free_port: int) -> None:
    """The line for machines without SLURM, with the options for a copy of the network on each."""
    command = line("torchrun --nnodes 2", "...").replace("HOST:29500", f"localhost:{free_port}")
    command = command.replace("node 8", "node 1").removesuffix("arvid fit ...")
    given = line("torchrun --nproc-per-node").split("-m -- ")[1]
    copies = line("--trainer.strategy", "replicas 2")
    arguments = [*command.split(), *given.split(), *copies.split(), *SMALL]
    launchers = [start(arguments, tmp_path) for _ in range(2)]
    for launcher in launchers:
        _, errors = launcher.communicate()
        assert launcher.returncode == 0, errors
    run(line("arvid export", "nova-model").split(), tmp_path)
    assert (tmp_path / "nova-model/model.ckpt").is_file()
