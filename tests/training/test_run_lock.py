"""One training at a time in a run folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from arvid.contracts import UserError
from arvid.training.run_lock import run_lock

HOLDS = """
import os, sys, time
from pathlib import Path
from arvid.training.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    if os.fork() == 0:  # as a data worker
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_training_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"in use: process {holder.pid} on .*, since \d{{4}}-"),
            run_lock(tmp_path),
        ):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with run_lock(tmp_path):  # although its child lives
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with caplog.at_level(logging.WARNING), run_lock(tmp_path):
        pass
    assert "without locks" in caplog.text
