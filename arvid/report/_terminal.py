"""A comparison as aligned text for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from arvid.report.cells import BLOCKS, Column, Row, one_line
from arvid.report.comparison import Comparison

_LABEL_WIDTH = 12  # headings of columns are wrapped to about this
_GAP = "  "


def text(comparison: Comparison, width: int = 140) -> str:
    """Aligned tables for a terminal of `width` columns; a table too wide is continued below itself."""
    parts = [comparison.summary]
    for note in comparison.notes:
        parts += textwrap.wrap(f"note: {one_line(note)}", width, subsequent_indent="  ")
    for block, title in BLOCKS.items():
        for columns in _fitting(comparison, comparison.in_block(block), width):
            parts += ["", _text_table(title, comparison, columns)]
    parts += ["", "* best of the trained rows    ± spread    ↑ higher is better, ↓ lower is better"]
    if comparison.legend:
        parts += ["evaluations per clip:", *(f"  {one_line(line)}" for line in comparison.legend)]
    return "\n".join(parts) + "\n"


@dataclass(frozen=True)
class _Printed:
    """A column as lines of text of equal width."""

    group: str
    heading: list[str]
    cells: list[str]

    @property
    def width(self) -> int:
        return max(map(len, [*self.heading, *self.cells, self.group[:_LABEL_WIDTH]]))


def _printed(rows: Sequence[Row], column: Column) -> _Printed:
    cells = [row.cell(column) for row in rows]
    # a blank instead of the mark keeps the digits of a column above each other
    texts = [f"{'*' if c.best else ' '}{c.text}" if c.text else "" for c in cells]
    label = f"{column.label} ({column.unit})" if column.unit else column.label
    heading = textwrap.wrap(one_line(label), _LABEL_WIDTH) or [""]
    heading[-1] = f"{heading[-1]} {column.arrow}".strip()
    return _Printed(one_line(column.group), heading, texts)


def _fitting(comparison: Comparison, columns: Sequence[Column], width: int) -> list[list[Column]]:
    """Columns in as few tables as fit `width`, names in front; a protocol is broken up only if it must be."""
    names = max(len(comparison.display_name(row)) for row in comparison.rows)

    def size(part: Sequence[Column]) -> int:
        return names + sum(len(_GAP) + _printed(comparison.rows, c).width for c in part)

    tables: list[list[Column]] = []
    for _, members in groupby(columns, key=lambda c: c.group):
        group = list(members)
        for part in [group] if size(group) <= width else [[column] for column in group]:
            if tables and size([*tables[-1], *part]) <= width:
                tables[-1] += part
            else:
                tables.append(part)
    return tables


def _text_table(title: str, comparison: Comparison, columns: Sequence[Column]) -> str:
    rows = comparison.rows_with(columns)
    printed = [_printed(rows, column) for column in columns]
    label = max(len(title), *(len(comparison.display_name(row)) for row in comparison.rows))
    lines = [f"{title:<{label}}{_groups(printed)}", *_headings(printed, label)]
    rule = "─" * max(map(len, lines))
    lines.append(rule)
    for i, row in enumerate(rows):
        if i and rows[i - 1].is_reference and not row.is_reference:
            lines.append("┄" * len(rule))
        cells = (p.cells[i].rjust(p.width) for p in printed)
        lines.append(_GAP.join([comparison.display_name(row).ljust(label), *cells]).rstrip())
    return "\n".join(lines)


def _headings(printed: Sequence[_Printed], label: int) -> list[str]:
    """The lines of the columns' headings, which stand on their last line."""
    height = max(len(p.heading) for p in printed)
    padded = [[""] * (height - len(p.heading)) + p.heading for p in printed]
    return [
        _GAP.join(
            [" " * label, *(h[i].rjust(p.width) for h, p in zip(padded, printed, strict=True))]
        )
        for i in range(height)
    ]


def _groups(printed: Sequence[_Printed]) -> str:
    """The line of protocol names, each at the left of its columns with a rule behind it."""
    line = ""
    for group, members in groupby(printed, key=lambda p: p.group):
        span = sum(len(_GAP) + p.width for p in members) - len(_GAP)
        name = textwrap.shorten(group, span, placeholder="…") if len(group) > span else group
        line += _GAP + (f"{name} " if len(name) < span else name).ljust(span, "─")
    return line
