"""Jobs side by side: all run, logs have their output, a failure stops the others."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arvid.contracts import UserError
from arvid.experiments.side_by_side import Job, Slot, run_side_by_side, slots


def test_each_job_has_a_log_that_begins_with_its_command(tmp_path: Path) -> None:
    jobs = [Job("a", ["evaluate", "--help"]), Job("b", ["compare", "--help"])]
    run_side_by_side(jobs, tmp_path / "logs")
    for name, command in (("a", "evaluate"), ("b", "compare")):
        log = (tmp_path / "logs" / f"{name}.log").read_text()
        assert log.startswith(f"$ arvid {command} --help\nusage: arvid {command}")


def test_a_failure_is_shown_and_stops_the_other_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    endless = ["fit", "--config=settings/sprites", "--config=paradigms/nova"]
    endless += ["--config=sizes/debug", "--trainer.max_steps=100000", f"--run={tmp_path / 'run'}"]
    jobs = [Job("endless", endless), Job("broken", ["evaluate", "nowhere", "--protocol=x"])]
    with pytest.raises(UserError, match=r"broken failed \(exit code 2\)[^$]*\$ arvid evaluate"):
        run_side_by_side(jobs, tmp_path)
    assert _processes_of(tmp_path) == []


def test_a_job_that_has_ended_is_not_run_again_unless_its_command_changes(tmp_path: Path) -> None:
    marker = tmp_path / "finished"
    run_side_by_side([Job("a", ["compare", "--help"], marker)], tmp_path)
    log = tmp_path / "a.log"
    log.unlink()
    run_side_by_side([Job("a", ["compare", "--help"], marker)], tmp_path)
    assert not log.exists()
    run_side_by_side([Job("a", ["evaluate", "--help"], marker)], tmp_path)
    assert "usage: arvid evaluate" in log.read_text()


def test_a_failed_job_has_no_marker(tmp_path: Path) -> None:
    job = Job("a", ["evaluate", "nowhere", "--protocol=x"], tmp_path / "finished")
    with pytest.raises(UserError, match="a failed"):
        run_side_by_side([job], tmp_path)
    assert not job.has_ended


@pytest.mark.parametrize(
    ("jobs", "gpus", "expected"),
    [
        (3, [], [Slot(1), Slot(1), Slot(1)]),
        (30, [], [Slot(1), Slot(1)]),
        (1, [], [Slot(2)]),
        (30, ["4", "6"], [Slot(1, "4"), Slot(1, "6")]),
        (1, ["4", "6"], [Slot(2, "4")]),
    ],
)
def test_slots_share_cores_or_gpus(
    monkeypatch: pytest.MonkeyPatch, jobs: int, gpus: list[str], expected: list[Slot]
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(gpus))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(gpus))
    assert slots(jobs) == expected


def test_a_terminated_demo_ends_its_jobs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "arvid", "bench", "demo", "--scale", "smoke", "--out", "."]
    demo = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert demo.stderr is not None
    assert any(" starts" in line for line in demo.stderr)
    assert len(_processes_of(tmp_path)) > 1
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(timeout=60) == 143
    assert _processes_of(tmp_path) == []


@pytest.mark.parametrize(
    "moment", ["a job starts", pytest.param("a job trains", marks=pytest.mark.slow)]
)
def test_a_killed_demo_leaves_nothing_behind(tmp_path: Path, moment: str) -> None:
    """Neither its jobs nor their data workers, whether they still import torch or train."""
    command = [sys.executable, "-m", "arvid", "bench", "demo", "--scale", "smoke", "--out", "."]
    command += ["--trainer.max_steps=1000000", "--data.num_workers=1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stderr is not None
            # which jobs start first depends on the number of cores
            started = next(m for line in demo.stderr if (m := re.search(r"(\S+) starts", line)))
            if moment == "a job trains":
                log = tmp_path / f"{started[1]}.log"
                while not re.search(r": \d+/1000000 steps", _text(log)):
                    assert demo.poll() is None
                    time.sleep(0.1)
        finally:
            demo.kill()  # `with` waits for its end
    ends = time.monotonic() + 5
    while (left := _processes_of(tmp_path)) and time.monotonic() < ends:
        time.sleep(0.1)
    assert left == []


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _processes_of(folder: Path) -> list[str]:
    """Commands that run in a folder or were given it as an argument."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text()
            if (process / "cwd").resolve() == folder.resolve() or f"{folder}/" in command:
                found.append(command.replace("\0", " "))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found
