"""The parts of a comparison: columns, rows and cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from arvid.evaluation.records import ResultRecord

Block = Literal["quality", "cost"]
BLOCKS: dict[Block, str] = {"quality": "Quality", "cost": "Cost"}
"""Titles of the two tables. One table would be too wide to read."""
Identity = tuple[str, str]
"""Name and hash of a protocol."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: a metric under a protocol, or a cost."""

    key: str
    """Unique and stable: `protocol/metric`, with a part of a hash if names are not unique."""
    label: str
    group: str
    """Heading of a group of columns: the protocol, or `training`."""
    block: Block
    higher_is_better: bool | None
    """None if no direction is better (e.g. parameters)."""
    unit: str = ""
    detail: str = ""
    """Definition of the values, needed to compare them with values from elsewhere."""

    @property
    def arrow(self) -> str:
        """Arrow towards better values; empty if no direction is better."""
        return {True: "↑", False: "↓", None: ""}[self.higher_is_better]

    @property
    def heading(self) -> str:
        """Label, unit and arrow."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.label}{unit} {self.arrow}".strip()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One value as measured and as shown."""

    text: str = ""
    value: float | None = None
    spread: float | None = None
    """Uncertainty after ±: `MetricValue.spread`."""
    count: int | None = None
    best: bool = False
    """Whether it is the best trained row of its column. False for reference rows, and if all values are equal."""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run, or the mean of runs that differ only in their seed, with at most one record per protocol."""

    name: str
    records: tuple[ResultRecord, ...]
    run: Path
    cells: Mapping[str, Cell] = field(default_factory=dict)
    """Column key -> cell; absent if nothing was measured."""
    seeds: tuple[Row, ...] = ()
    """Rows of the single training seeds of a merged row; else empty."""

    @property
    def is_reference(self) -> bool:
        """Whether the row is a reference, not a model that was trained."""
        return self.records[0].row == "reference"

    @property
    def sources(self) -> tuple[ResultRecord, ...]:
        """The records as written: for a merged row those of all seeds."""
        return tuple(r for row in self.seeds for r in row.records) or self.records

    @property
    def factors(self) -> dict[str, str]:
        """Factors of the row, e.g. paradigm, token type and size."""
        return {k: v for record in self.records for k, v in record.factors.items()}

    @property
    def errors(self) -> dict[str, str]:
        """Protocol name -> why the row failed; empty if it did not fail."""
        return {r.protocol_name: r.error for r in self.records if r.error}

    def cell(self, column: Column) -> Cell:
        """The cell in a column; blank if nothing was measured."""
        return self.cells.get(column.key, Cell())


def identity(record: ResultRecord) -> Identity:
    """Name and hash of the record's protocol. Records share a column only if both are equal."""
    return record.protocol_name, record.protocol_hash


def one_line(value: str) -> str:
    """Replace line breaks and control characters, which would break a table or control a terminal."""
    return "".join(char if char.isprintable() else " " for char in value)
