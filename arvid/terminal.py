"""A console for printed tables: with a terminal's width and styles, or as plain text."""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console

WIDTH = 140
"""Columns of output that is not to a terminal."""


def console(file: TextIO | None = None, width: int = WIDTH) -> Console:
    """A console for stdout, or for plain text of `width` columns in a file. Strings are never read as markup."""
    terminal = file is None and sys.stdout.isatty()
    return Console(
        file=file,
        width=None if terminal else width,
        color_system="auto" if terminal else None,
        markup=False,
        highlight=False,
        emoji=False,
    )
