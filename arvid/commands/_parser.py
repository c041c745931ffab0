"""The parser of a command whose options depend on what the command line names."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """Adds further options before it parses, and suggests some when it meets one that it does not know."""

    complete: Callable[[Sequence[str]], Sequence[str]] | None = None
    """Adds options that depend on the command line, which it gets; returns their flags."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does. Ends the program with a message for options that neither the command nor the model has."""
        if self.complete is None:
            return super().parse_known_args(args, namespace)
        added = self.complete(args or ())
        self.complete = None
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(
                f"unrecognized arguments: {' '.join(unknown)}. {self._advice(unknown, added)}"
            )
        return found, unknown

    def _advice(self, unknown: Sequence[str], added: Sequence[str]) -> str:
        flag = next((a for a in unknown if a.startswith("--")), unknown[0]).partition("=")[0]
        close = difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.75)
        suggestion = f"Did you mean {close[0]}? " if close else ""
        return f"{suggestion}This model's sampling options: {', '.join(added)}"
