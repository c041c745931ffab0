"""Ends the processes that arvid started when their parent has ended in any way.

A killed process cannot stop its children. So each child checks every second whether its parent still exists. If not, it
ends itself, and its process group if it leads one (its data workers and ranks). This module imports nothing slow, so a
child starts to check before it imports torch.
"""

from __future__ import annotations

import os
import signal
import threading
import time

VARIABLE = "ARVID_PARENT"
SECONDS = 1.0
"""Seconds between two checks of the parent."""


def child_environment() -> dict[str, str]:
    """Environment variables for a child that runs arvid and must end with this process."""
    return {VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """Watch the parent in a thread, if the parent started this process with `child_environment`."""
    parent = os.environ.pop(VARIABLE, None)  # removed: it is not meant for this process's children
    if parent is not None:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:  # an orphan gets another parent
        time.sleep(SECONDS)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
