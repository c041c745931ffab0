"""Print a results page, which is Markdown, in a terminal: aligned tables and wrapped lines."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.box import Box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

_RULE = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")
_GAP = 2
"""Spaces between two columns."""
_SEPARATOR = re.compile(r"\|[\s:|-]+\|")
_STARTS = re.compile(r"(?P<start>> |- |\d+\. )?(?P<text>.*)")


def show_page(page: str, console: Console) -> None:
    """Print a page. A table wider than the console continues below itself, with the first column repeated."""
    for part in _parts(page.splitlines(), console.width):
        console.print(part)


def _parts(lines: Sequence[str], width: int) -> Iterator[RenderableType]:
    for is_table, group in groupby(lines, key=lambda line: line.startswith("|")):
        if is_table:
            rows = [_cells(line) for line in group if not _SEPARATOR.fullmatch(line)]
            yield from _tables(rows, width)
        else:
            yield from map(_line, group)


def _line(line: str) -> RenderableType:
    if line.startswith("#"):
        return Text(_plain(line.lstrip("# ")), style="bold")
    found = _STARTS.fullmatch(line)
    assert found is not None
    if found["start"] is None:
        return _plain(line)
    hanging = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    text = found["text"].removeprefix("**Note.** ")  # the start says so
    hanging.add_row(found["start"].strip().replace(">", "note:"), _plain(text))
    return hanging


def _cells(line: str) -> list[str]:
    """The cells of a row of a Markdown table. A bar after a backslash is part of the text."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _plain(text: str) -> str:
    """Text without Markdown's marks. Bold text gets a star instead."""
    text = re.sub(r"<br>", "\n", text)
    text = re.sub(r"</?\w+>", "", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"★\1", text)
    text = re.sub(r"(?<![\\*])\*(?!\*)(.+?)(?<!\\)\*", r"\1", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^Bold\b|(?<=\. )Bold\b", "★", text)  # the word that explains the stars
    return html.unescape(re.sub(r"\\(.)", r"\1", text)).replace("★", "*")


def _tables(rows: Sequence[Sequence[str]], width: int) -> Iterator[RenderableType]:
    plain = [[_plain(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*plain, strict=True)]
    for columns in _fitting(widths, width):
        heading, *others = ([row[i] for i in columns] for row in plain)
        table = Table(box=_RULE, show_edge=False, header_style="", padding=(0, _GAP, 0, 0))
        for i, text in zip(columns, heading, strict=True):
            table.add_column(text, justify="right" if i else "left", vertical="bottom")
        for row in others:
            table.add_row(*row)
        yield table
        yield ""


def _width(cell: str) -> int:
    return max(map(len, cell.splitlines()), default=0)


def _fitting(widths: Sequence[int], width: int) -> list[list[int]]:
    """Indices of the columns of each table: as many as fit, the first column in all of them."""
    found: list[list[int]] = [[0]]
    for i in range(1, len(widths)):
        needed = sum(widths[k] + _GAP + 1 for k in (*found[-1], i))
        if needed > width and len(found[-1]) > 1:
            found.append([0])
        found[-1].append(i)
    return found
