"""A comparison as tables for the terminal."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.box import Box
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from arvid import terminal
from arvid.report._markup import UNCERTAINTY
from arvid.report.cells import BLOCKS, Cell, Column, one_line
from arvid.report.comparison import Comparison

_HEADING_WIDTH = 12  # longer headings of columns are wrapped between words
_RULES = Box("    \n    \n ── \n    \n ┄┄ \n    \n    \n    \n")


def text(comparison: Comparison, width: int = terminal.WIDTH) -> str:
    """Aligned tables in lines of at most `width` columns; a table too wide is continued below itself."""
    file = io.StringIO()
    show(comparison, terminal.console(file, width))
    return file.getvalue()


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print `text`, in a terminal in its width and with the best values in bold."""
    console = console or terminal.console()
    console.print(*_parts(comparison, console), sep="\n")


def _parts(comparison: Comparison, console: Console) -> Iterator[RenderableType]:
    yield comparison.summary
    yield from map(_note, comparison.warnings)
    for block in BLOCKS:
        for columns in _fitting(comparison, comparison.in_block(block), console):
            yield ""
            yield _table(comparison, columns)
    yield "\n* best of the trained rows    ↑ higher is better, ↓ lower is better"
    yield UNCERTAINTY
    if comparison.legend:
        yield "evaluations per clip:"
        yield from (_hanging("-", line) for line in comparison.legend)
    yield from map(_note, comparison.remarks)


def _note(text: str) -> Table:
    return _hanging("note:", text)


def _hanging(start: str, text: str) -> Table:
    """A start and a text beside it, whose lines are aligned."""
    line = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    line.add_row(start, one_line(text))
    return line


def _fitting(
    comparison: Comparison, columns: Sequence[Column], console: Console
) -> list[list[Column]]:
    """Columns in as few tables as fit the width, names in front; a protocol is broken up only if it must be."""
    unbounded = console.options.update(max_width=10_000)

    def fits(part: Sequence[Column]) -> bool:
        table = _table(comparison, part)
        return console.measure(table, options=unbounded).maximum <= console.width

    tables: list[list[Column]] = []
    for _, members in groupby(columns, key=lambda c: c.group):
        group = list(members)
        for part in [group] if fits(group) else [[column] for column in group]:
            if tables and fits([*tables[-1], *part]):
                tables[-1] += part
            else:
                tables.append(part)
    return tables


def _table(comparison: Comparison, columns: Sequence[Column]) -> Table:
    title = BLOCKS[columns[0].block]
    table = Table(title, box=_RULES, show_edge=False, header_style="", padding=(0, 1, 0, 0))
    labels = [_label(column) for column in columns]
    height = max(label.count("\n") for label in labels)
    for i, (column, label) in enumerate(zip(columns, labels, strict=True)):
        same_group = i and columns[i - 1].group == column.group
        group = Rule(style="") if same_group else Text(one_line(column.group), justify="left")
        padding = "\n" * (height - label.count("\n"))
        table.add_column(Group(group, padding + label), justify="right", no_wrap=True)
    rows = comparison.rows_with(columns)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        last_reference = row.is_reference and following and not following.is_reference
        cells = (_cell(row.cell(column)) for column in columns)
        table.add_row(comparison.display_name(row), *cells, end_section=bool(last_reference))
    return table


def _label(column: Column) -> str:
    label = f"{column.label} ({column.unit})" if column.unit else column.label
    lines = textwrap.wrap(one_line(label), _HEADING_WIDTH, break_long_words=False)
    return "\n".join([*lines[:-1], f"{lines[-1]} {column.arrow}".strip()])


def _cell(cell: Cell) -> Text:
    return Text(f"*{cell.text}", style="bold") if cell.best else Text(cell.text)
