"""What is printed as a table: in the width and with the styles of a terminal, as plain text elsewhere."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console

WIDTH = 140
"""Columns of text that goes elsewhere than to a terminal."""


def console(file: TextIO | None = None, width: int = WIDTH) -> Console:
    """Prints to stdout, or as plain text of `width` columns to a file. Nothing in a string is markup."""
    terminal = file is None and sys.stdout.isatty()
    return Console(
        file=file,
        width=None if terminal else width,
        color_system="auto" if terminal else None,
        markup=False,
        highlight=False,
        emoji=False,
    )
