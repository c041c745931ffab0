"""Jobs side by side: all run, logs tell what happened, a failure stops the rest."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arvid.contracts import UserError
from arvid.training.side_by_side import Job, run_side_by_side


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
    began = time.monotonic()
    with pytest.raises(UserError, match=r"broken failed \(exit code 2\)[^$]*\$ arvid evaluate"):
        run_side_by_side(jobs, tmp_path)
    assert time.monotonic() - began < 60


def test_a_terminated_demo_ends_its_jobs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "arvid", "bench", "demo", "--scale", "smoke", "--out", "."]
    demo = subprocess.Popen(command, cwd=tmp_path)
    log = tmp_path / "nova.log"
    while not log.exists() or not log.read_text():
        assert demo.poll() is None
        time.sleep(0.1)
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(timeout=60) == 143
    running = [entry for entry in Path("/proc").glob("[0-9]*/cwd") if _points_to(entry, tmp_path)]
    assert running == []


def _points_to(link: Path, folder: Path) -> bool:
    try:
        return link.resolve() == folder.resolve()
    except OSError:
        return False
