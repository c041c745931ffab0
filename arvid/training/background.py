"""Work in a thread beside the training, such as writing a checkpoint: one piece of work at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs a function in a thread. `wait` waits for its end, and raises its error."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Start `work` in a thread. If other work was started earlier, call `wait` first."""
        assert self._thread is None
        # A daemon thread: a process that must end at once does not wait for it.
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the work has ended. Raises its error, once. Returns at once if nothing was started."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
