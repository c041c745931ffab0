"""Processes that end with the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = """
import os, time
from arvid.processes import PARENT_VARIABLE, end_with_parent
end_with_parent()
assert PARENT_VARIABLE not in os.environ  # or its own children would look for another parent
if os.fork():
    print(os.getpid(), flush=True)
time.sleep(600)
"""
PARENT = f"""
import os, subprocess, sys, time
from arvid.processes import child_environment
subprocess.Popen(
    [sys.executable, "-c", {CHILD!r}], env=os.environ | child_environment(), process_group=0
)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_and_its_children_end_with_a_killed_parent(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        assert len(members(group)) == 2
        parent.send_signal(number)
        parent.wait()
        ends = time.monotonic() + 5
        while members(group) and time.monotonic() < ends:
            time.sleep(0.05)
        assert members(group) == []


def test_a_process_whose_parent_is_gone_already_ends_at_once() -> None:
    environment = {**os.environ, "ARVID_PARENT": "1"}  # as if its parent had died meanwhile
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, process_group=0, timeout=30, check=False
    )
    assert done.returncode == -signal.SIGKILL


def members(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # ended meanwhile
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found
