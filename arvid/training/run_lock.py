"""A lock that allows one training at a time in a run folder. It names its holder and ends with the process."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arvid.errors import UserError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the lock of a run folder.

    The operating system releases the lock when the process ends in any way; the file RUN/.lock stays. Forked data
    workers do not hold it. Raises UserError with host, process and time if another process holds it. On file systems
    without locks it only logs a warning.
    """
    run.mkdir(parents=True, exist_ok=True)
    with open(run / LOCK_FILE, "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # POSIX allows both
            raise UserError(
                f"{run} is in use: {_holder(run)} trains there. Wait until it ends, stop it, or use another --run "
                "folder."
            ) from error
        except OSError as error:
            logger.warning(
                "%s is on a file system without locks (%s): nothing keeps a second training out of this folder.",
                run,
                error.strerror,
            )
        file.truncate(0)
        json.dump(_this_process(), file)
        file.flush()
        yield


def _this_process() -> dict[str, str | int]:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _holder(run: Path) -> str:
    try:
        found = json.loads((run / LOCK_FILE).read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}, since {found['since']},"
    except (OSError, ValueError, KeyError, TypeError):  # the holder is writing the file right now
        return "another process"
