"""Jobs side by side: all run, logs tell what happened, a failure stops the rest."""

from __future__ import annotations

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
