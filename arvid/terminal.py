"""A console for printed tables: with a terminal's width and styles, or as plain text."""

from __future__ import annotations

import sys
import textwrap
from typing import TextIO

from rich.console import Console

WIDTH = 140
"""Columns of output that is not to a terminal."""


def wrapped(text: str, indent: int = 0) -> str:
    """Break a line of text to the terminal's width, between words. Lines after the first are indented.

    If stdout is not a terminal, the text stays one line, for programs that read it.
    """
    if not sys.stdout.isatty():
        return text
    return textwrap.fill(
        text,
        console().width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


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
