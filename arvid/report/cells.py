"""The parts of a comparison: columns, rows and the cells where they meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from arvid.evaluation.records import ResultRecord

Block = Literal["quality", "cost"]
BLOCKS: dict[Block, str] = {"quality": "Quality", "cost": "Cost"}
"""The two tables that the columns are shown in: one would be too wide to read."""
Identity = tuple[str, str]
"""Name and hash of a protocol."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: a metric under a protocol, or a cost."""

    key: str
    """Unique and stable: `protocol/metric`, with a piece of a hash where the names are not enough."""
    label: str
    group: str
    """Heading over the columns that belong together: the protocol, or `training`."""
    block: Block
    higher_is_better: bool | None
    """None where neither end is better (parameters, say)."""
    unit: str = ""
    detail: str = ""
    """What a reader should know before comparing it with a number from elsewhere."""

    @property
    def arrow(self) -> str:
        return {True: "↑", False: "↓", None: ""}[self.higher_is_better]

    @property
    def heading(self) -> str:
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.label}{unit} {self.arrow}".strip()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number as measured and as shown."""

    text: str = ""
    value: float | None = None
    spread: float | None = None
    count: int | None = None
    best: bool = False
    """The best of the trained rows in its column (never a reference row, nor where all are equal)."""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run (or the mean of several that differ in their seed) and its records, at most one per protocol."""

    name: str
    records: tuple[ResultRecord, ...]
    run: Path
    cells: Mapping[str, Cell] = field(default_factory=dict)
    """By column key; absent where nothing was measured."""
    seeds: tuple[Row, ...] = ()
    """The rows of single training seeds that it is the mean of."""

    @property
    def is_reference(self) -> bool:
        return self.records[0].row == "reference"

    @property
    def sources(self) -> tuple[ResultRecord, ...]:
        """The records as they were written: of all seeds where it is a mean."""
        return tuple(r for row in self.seeds for r in row.records) or self.records

    @property
    def factors(self) -> dict[str, str]:
        """What the row stands for, e.g. paradigm, token type and size."""
        return {k: v for record in self.records for k, v in record.factors.items()}

    @property
    def errors(self) -> dict[str, str]:
        """Why the row failed, by protocol name; empty if it did not."""
        return {r.protocol_name: r.error for r in self.records if r.error}

    def cell(self, column: Column) -> Cell:
        """The cell in a column; blank if nothing was measured."""
        return self.cells.get(column.key, Cell())


def identity(record: ResultRecord) -> Identity:
    """Name and hash of the protocol: records that differ in either share no column."""
    return record.protocol_name, record.protocol_hash


def one_line(value: str) -> str:
    """Without line breaks and control characters, which would break a table or steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in value)
