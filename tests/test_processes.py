"""Processes that share a command: how they find each other, that they write the same files, what ends a wait."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arvid.processes import launch

SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "2", "WORLD_SIZE": "5", "LOCAL_RANK": "1"}, (2, 5, 1)),
        (SLURM, (3, 8, 1)),
        ({**SLURM, "RANK": "0", "WORLD_SIZE": "2"}, (0, 2, 0)),  # torchrun under srun
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "4"}, (3, 4, 1)),  # a step of fewer tasks
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, (0, 1, 0)),  # the shell of salloc
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}, (0, 1, 0)),
        ({"SLURM_NTASKS": "8"}, (0, 1, 0)),  # salloc's, outside any task
    ],
)
def test_processes_are_known_by_the_variables_of_their_launcher(
    variables: dict[str, str], expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch() == expected


def files(folder: Path) -> dict[str, bytes]:
    """Content by name; records without their times, which are measured anew."""
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _content(path: Path) -> bytes:
    if path.suffix != ".json":
        return path.read_bytes()
    value = json.loads(path.read_text())
    if isinstance(value, dict):
        for measured in ("wall_seconds", "created", "checksum"):
            value.pop(measured, None)
        value.get("budget", {}).pop("frames_per_second", None)
    return json.dumps(value).encode()


def written_by(
    together: Any, arguments: list[str], tmp_path: Path, by: str = "torchrun"
) -> list[dict[str, bytes]]:
    """The files that a command writes into OUT, run by 1, 2 and 3 processes."""
    found = []
    for count in (1, 2, 3):
        folder = tmp_path / str(count)
        folder.mkdir(exist_ok=True)
        codes, outputs = together.run(arguments, count, folder, by=by)
        assert codes == [0] * count, outputs
        found.append(files(folder))
    return found


@pytest.mark.parametrize("by", ["torchrun", "srun"])
def test_sample(by: str, trained_run: Path, tmp_path: Path, together: Any) -> None:
    arguments = ["sample", f"--checkpoint={trained_run}", "--prompt=a small red square moves left"]
    arguments += ["--count=5", "--batch-size=2", "--out=out", "--seed=3"]
    one, two, three = written_by(together, arguments, tmp_path, by)
    assert set(one) == {*(f"out/{i:03d}.mp4" for i in range(5)), "out/sheet.png"}
    assert one == two == three


def test_batches_of_a_sample_have_other_noise_each(
    trained_run: Path, tmp_path: Path, together: Any
) -> None:
    arguments = ["sample", f"--checkpoint={trained_run}", "--prompt=a large red square moves left"]
    for seed, size in ((3, 4), (3, 2), (4, 2)):
        out = f"--out={seed}-{size}"
        given = [*arguments, "--count=4", f"--batch-size={size}", f"--seed={seed}", out]
        assert together.run(given, 1, tmp_path)[0] == [0]
    clips = {path: (tmp_path / path).read_bytes() for path in ("3-2/000.mp4", "3-2/002.mp4")}
    assert clips["3-2/000.mp4"] != clips["3-2/002.mp4"]
    assert clips["3-2/002.mp4"] == (tmp_path / "4-2/000.mp4").read_bytes()  # seed + batch


def test_evaluate(trained_run: Path, tmp_path: Path, together: Any) -> None:
    protocol = tmp_path / "protocol.yaml"
    protocol.write_text(
        "{name: mine, summary: x, task: prediction, condition_frames: 1, num_clips: 8, batch_size: 2, "
        "metrics: [psnr, ssim]}"
    )
    run = tmp_path / "run"
    shutil.copytree(trained_run, run, ignore=shutil.ignore_patterns("evaluation"))
    arguments = ["evaluate", str(run), f"--protocol={protocol}", "--references=references"]
    record = run / "evaluation"
    found = []
    for count in (1, 2, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        codes, outputs = together.run(arguments, count, folder)
        assert codes == [0] * count, outputs
        found.append(files(folder) | files(record))
        for path in sorted(record.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
    assert any(name.endswith(".mp4") for name in found[0])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("by", ["torchrun", "srun"])
def test_encode(by: str, tmp_path: Path, together: Any) -> None:
    config = tmp_path / "few.yaml"
    config.write_text(
        "data: {train: {init_args: {num_clips: 300}}, val: {init_args: {num_clips: 8}}}"
    )
    names = ("settings/sprites", "paradigms/nova", "sizes/debug", str(config))
    arguments = ["encode", *(f"--config={name}" for name in names), "--out=out"]
    one, two, three = written_by(together, arguments, tmp_path, by)
    assert len(one) == 5  # two shards and one, with a manifest each
    assert one == two == three


def test_vbench(trained_run: Path, tmp_path: Path, together: Any) -> None:
    prompts = [f"a {size} red square moves left" for size in ("small", "large")]
    suite = [{"prompt_en": text, "dimension": ["temporal_flickering"]} for text in prompts]
    (tmp_path / "suite.json").write_text(json.dumps(suite))
    asked = [f"--suite={tmp_path / 'suite.json'}", "--dimension=temporal_flickering"]
    sample = ["sample", "row", *asked, f"--checkpoint={trained_run}", "--flickering-samples=5"]
    score = [
        "score",
        "row",
        *asked,
        "--no-static-filter",
        f"--videos={tmp_path / '1/row/vbench/videos'}",
    ]
    for step in (sample, score, ["aggregate", "row"]):
        given = ["evaluate", "vbench", *step]
        one, two, three = written_by(together, given, tmp_path)
        assert one == two == three
    assert sum(name.endswith(".mp4") for name in one) == 10
    assert "row/evaluation/vbench.json" in one


ENDS_OR_STAYS = """
import os, signal, sys, time
import torch.distributed
from arvid.errors import UserError
from arvid.processes import sharing_processes, wait_for_all

def work(rank):
    os.environ.update(RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank))
    with sharing_processes(wait_minutes=float(sys.argv[2])):
        if rank == 2:
            {"ends": lambda: os.kill(os.getpid(), signal.SIGKILL), "stays": signal.pause}[sys.argv[1]]()
        wait_for_all()

pids = []
for rank in range(3):
    pids.append(os.fork())
    if pids[-1] == 0:
        try:
            work(rank)
        except UserError as error:
            print(error, flush=True)
        os._exit(0)
for pid in pids[:2]:
    os.waitpid(pid, 0)
os.kill(pids[2], signal.SIGKILL)
"""


@pytest.mark.parametrize(("fault", "wait_minutes"), [("ends", 30), ("stays", 0.05)])
def test_nobody_waits_for_ever(fault: str, wait_minutes: float, free_port: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS_OR_STAYS, fault, str(wait_minutes)],
        env={**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.count("Another process that shares this work has ended or is too late") == 2


def test_processes_that_do_not_meet_say_so(
    trained_run: Path, tmp_path: Path, together: Any
) -> None:
    """One task of two was started, as in an sbatch script without srun."""
    arguments = ["sample", f"--checkpoint={trained_run}", "--prompt=x", "--wait-minutes=0.02"]
    codes, outputs = together.run(arguments, 1, tmp_path, by="srun", SLURM_NTASKS="2")
    assert codes == [2]
    assert "2 processes should share this work, but did not connect" in outputs[0]
    assert "write srun before the command" in outputs[0]
