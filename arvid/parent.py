"""Processes that arvid starts end when the process that started them is gone, however that ended.

A killed process cannot stop its children. So a child looks every second whether its parent is still the one that
started it. It then ends itself, and its process group where it leads one: its data workers and ranks.
This module imports nothing slow, so that a child looks before it imports torch.
"""

from __future__ import annotations

import os
import signal
import threading
import time

VARIABLE = "ARVID_PARENT"
SECONDS = 1.0
"""Time between two looks at the parent."""


def child_environment() -> dict[str, str]:
    """What to add to the environment of a child that runs arvid and shall end with this process."""
    return {VARIABLE: str(os.getpid())}


def end_with_parent() -> None:
    """Watch the parent, in a thread, if it asked for that by `child_environment`."""
    parent = os.environ.pop(VARIABLE, None)  # for this process alone, not for its children
    if parent is not None:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
