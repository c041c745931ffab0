"""Ranges of numeric options. They are declared next to the option and checked before any work starts.

    at_least(1).require(num_clips=num_clips, num_frames=num_frames)  # in a constructor
    parser.add_argument("--count", type=at_least(1).integer)  # on a command line

No range contains NaN or infinity. Commands parse their arguments with this module, so it does not import torch.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

from arvid.errors import UserError

N = TypeVar("N", int, float)

LIMIT = 2**63
"""Integers of this size do not fit into an int64 tensor; no range contains them."""


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`. An open bound is excluded."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: Any) -> bool:
        if not _is_finite_number(value):
            return False
        above = self.low < value if self.low_open else self.low <= value
        return above and (value < self.high if self.high_open else value <= self.high)

    def __str__(self) -> str:
        """As in 'must be at least 1'."""
        if not (self.low_open or self.high_open) and -math.inf < self.low <= self.high < math.inf:
            return f"{self.low} to {self.high}"
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'above' if self.low_open else 'at least'} {self.low}")
        if self.high < math.inf:
            bounds.append(f"{'below' if self.high_open else 'at most'} {self.high}")
        return " and ".join(bounds) or "a finite number"

    def fault(self, value: Any) -> str | None:
        """Error text to put after the option's name; None for a value in the range."""
        if value in self:
            return None
        if isinstance(value, int) and value >= LIMIT:
            return "must be below 2**63"
        return f"must be {self}, not {value}"

    def require(self, where: str = "", /, **values: Any) -> None:
        """Raise UserError with name, value and range of the first option outside the range.

        Args:
            where: prefix of the names in the error, such as "size.".
            values: options by name. None counts as not set; each item of a tuple or list is checked.
        """
        for name, given in values.items():
            for value in given if isinstance(given, (tuple, list)) else (given,):
                fault = None if value is None else self.fault(value)
                if fault:
                    raise UserError(f"{where}{name} {fault}.")

    def integer(self, text: str) -> int:
        """Argparse `type=` for an integer in the range."""
        try:
            return self._parsed(int(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from error

    def number(self, text: str) -> float:
        """Argparse `type=` for a number in the range."""
        try:
            return self._parsed(float(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from error

    def _parsed(self, value: N) -> N:
        fault = self.fault(value)
        if fault:
            raise argparse.ArgumentTypeError(fault)
        return value


def _is_finite_number(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) < LIMIT
    return isinstance(value, Real) and math.isfinite(value)


def at_least(low: float) -> Range:
    """`low` or more."""
    return Range(low)


def above(low: float, *, at_most: float = math.inf) -> Range:
    """More than `low`, at most `at_most`."""
    return Range(low, at_most, low_open=True)


def between(low: float, high: float) -> Range:
    """From `low` to `high`, both included."""
    return Range(low, high)


FINITE = Range()
SHARE = between(0, 1)
"""Probabilities and fractions."""
FPS = Range(0, 1000, low_open=True, high_open=True)
"""Frame rates that a video file can have."""
FILE_FPS = 8.0
"""Frames per second of sampled videos, if no rate is given."""
