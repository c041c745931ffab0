"""Progress of long work: a bar in a terminal, a line from time to time in a log.

A log gets the first line after 5 seconds. The time between two lines grows with the time that has passed, up to ten
minutes, so that the log of a week stays short.
"""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

FIRST_SECONDS = 5.0
"""Time before the first line of a log, and the smallest time between two lines."""
LONGEST_SECONDS = 600.0
GROWTH = 0.05
"""Time between two lines of a log, as a share of the time that has passed."""
BAR_SECONDS = 0.2
"""Time between two pictures of a bar in a terminal."""
BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}, {speed}, {remaining} left"
LINE = "{desc}: {n_fmt}/{total_fmt} {units}{postfix}, {speed}, {remaining} left"
DONE = "{desc}: {n_fmt}/{total_fmt} {units}{postfix}, {speed}, {elapsed} in all"
_LINE = re.compile(r"(?P<work>.+): (?P<count>\d+/\d+) (?P<units>[a-z]+), (?P<rest>.+)")


class Bar(tqdm):  # type: ignore[type-arg]  # tqdm takes no [Item] when the program runs
    """A tqdm bar on stderr that writes lines instead if stderr is no terminal.

    Args:
        items: what a `for` loop goes through; None if `update` is called instead.
        work: name of the work.
        total: number of units.
        unit: name of one unit, in the singular.
        hidden: show nothing, for processes other than the first. Nothing is shown of no units either.
        leave: keep the finished bar. A log then always has a last line.
        initial: units that were done before.
    """

    def __init__(
        self,
        items: Iterable[Any] | None = None,
        work: str = "",
        total: int | None = None,
        *,
        unit: str = "clip",
        hidden: bool = False,
        leave: bool = False,
        initial: int = 0,
    ) -> None:
        self.lines = not sys.stderr.isatty()
        self._began = time.monotonic()
        self._next_line = self._began + FIRST_SECONDS
        self._closed = False
        super().__init__(
            items,
            work,
            total,
            unit=unit,
            disable=hidden or total == 0,
            leave=leave,
            initial=initial,
            file=sys.stderr,
            mininterval=BAR_SECONDS,
            dynamic_ncols=True,
            bar_format=BAR if total else None,
        )

    def is_due(self) -> bool:
        """Whether the next `update` may show something. Values for `set_postfix` need not be read otherwise."""
        if self.lines:
            return time.monotonic() >= self._next_line
        return time.time() - self.last_print_t >= self.mininterval

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the forms above may hold: tqdm's values, the plural of the unit, and the speed in words."""
        values = super().format_dict
        done = values["n"] - values["initial"]
        mean = done / values["elapsed"] if values["elapsed"] else 0.0
        rate = mean if self._closed else values["rate"] or mean
        units = self.unit + ("es" if self.unit.endswith("ch") else "s")
        speed = f"{_digits(rate)} {units}/s" if rate else f"? {units}/s"
        if 0 < rate < 1:
            speed = f"{_digits(1 / rate)} s/{self.unit}"
        return {**values, "units": units, "speed": speed}

    def display(self, *args: Any, **kwargs: Any) -> bool:  # type: ignore[override]
        """Draw the bar; in a log, write a line if one is due. Returns whether a bar was drawn: tqdm erases it then."""
        if not self.lines:
            return bool(super().display(*args, **kwargs))
        now = time.monotonic()
        is_last = self.total is not None and self.n >= self.total  # `close` writes it
        if now >= self._next_line and not self._closed and not is_last:
            self._next_line = now + min(
                max(FIRST_SECONDS, GROWTH * (now - self._began)), LONGEST_SECONDS
            )
            self._write(LINE)
        return False

    def close(self) -> None:
        """Erase the bar, or leave it; in a log, write the last line if the work was long or the bar would stay."""
        if self.lines and not self.disable:
            self._closed = True
            if self.leave or time.monotonic() >= self._began + FIRST_SECONDS:
                self._write(DONE)
            self.fp = io.StringIO()  # tqdm ends a bar with a control character
        super().close()

    def _write(self, form: str) -> None:
        given = {**self.format_dict, "ncols": None, "bar_format": form if self.total else None}
        print(self.format_meter(**given), file=sys.stderr, flush=True)


def _digits(value: float) -> str:
    """Three significant digits."""
    return f"{value:#.3g}".rstrip(".")


@dataclass(frozen=True)
class Line:
    """A line of `Bar` in a log."""

    work: str
    count: str
    """Finished and all units, such as "12/400"."""
    units: str
    rest: str
    """Values, rate and time left."""


def last_line(log: str) -> Line | None:
    """The last line of a log that `Bar` wrote; None if there is none."""
    found = [match for match in map(_LINE.fullmatch, log.splitlines()) if match]
    return Line(**found[-1].groupdict()) if found else None
