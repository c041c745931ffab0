"""Results as rows of plain values, which pandas reads and a notebook shows as a table."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from arvid.evaluation.records import ResultRecord
from arvid.report import tables
from arvid.report.comparison import Comparison

Value = str | float | None
SPREAD = " spread"
"""End of the key of a value's uncertainty: a standard error, or a standard deviation over seeds or resamples."""


@dataclass(frozen=True)
class Results(Sequence[dict[str, Value]]):
    """A table: a sequence of rows, each a dict. `pandas.DataFrame(results)` reads it.

    Keys: `name`, `row` (trained or reference), the factors such as `paradigm`, then `PROTOCOL/METRIC` for each value
    and `PROTOCOL/METRIC spread` for its uncertainty. Every row has every key; a value that was not measured is None.
    """

    rows: tuple[dict[str, Value], ...]
    notes: tuple[str, ...] = ()
    """Remarks on the whole table, such as differences between settings."""

    @classmethod
    def of_records(cls, records: Sequence[ResultRecord]) -> Results:
        """One row per run: its values under each protocol."""
        rows: dict[tuple[Path | None, str], dict[str, Value]] = {}
        for record in records:
            row = rows.setdefault((record.folder, record.name), {})
            row |= {"name": record.name, "row": record.row, **record.factors}
            for metric in record.metrics:
                key = f"{record.protocol_name}/{metric.name}"
                row |= {key: metric.value, f"{key}{SPREAD}": metric.spread}
        notes = [note for record in records for note in record.notes]
        failed = [f"{r.name} failed under {r.protocol_name}: {r.error}" for r in records if r.error]
        return cls(_filled(rows.values()), tuple(dict.fromkeys([*notes, *failed])))

    @classmethod
    def of_comparison(cls, comparison: Comparison) -> Results:
        """The rows of `arvid compare`, unrounded."""
        rows: list[dict[str, Value]] = []
        for found in tables.to_dict(comparison)["rows"]:
            row: dict[str, Value] = {"name": found["name"], "row": found["row"], **found["factors"]}
            for key, cell in found["cells"].items():
                row[key] = cell["value"]
                if cell["spread"] is not None:
                    row[f"{key}{SPREAD}"] = cell["spread"]
            rows.append(row)
        return cls(_filled(rows), comparison.notes)

    @property
    def columns(self) -> list[str]:
        """Keys of the rows."""
        return list(self.rows[0]) if self.rows else []

    def to_dict(self) -> dict[str, list[Value]]:
        """Key -> values of all rows."""
        return {key: [row[key] for row in self.rows] for key in self.columns}

    @overload
    def __getitem__(self, index: int) -> dict[str, Value]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[dict[str, Value], ...]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        heading, *lines = self._cells()
        widths = [max(map(len, column)) for column in zip(heading, *lines, strict=True)]
        return "\n".join(
            "  ".join(map(str.ljust, line, widths)).rstrip()
            for line in [heading, *lines, *([f"note: {note}"] for note in self.notes)]
        )

    def _repr_html_(self) -> str:
        heading, *lines = (map(html.escape, line) for line in self._cells())
        head = "".join(f"<th>{text}</th>" for text in heading)
        body = "".join(f"<tr>{''.join(f'<td>{t}</td>' for t in line)}</tr>" for line in lines)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def _cells(self) -> list[list[str]]:
        """Heading and rows as text; a value and its uncertainty are one cell."""
        keys = [key for key in self.columns if not key.endswith(SPREAD)]
        lines = [[_text(row[key], row.get(f"{key}{SPREAD}")) for key in keys] for row in self.rows]
        return [keys, *lines]


def _filled(rows: Iterable[dict[str, Value]]) -> tuple[dict[str, Value], ...]:
    """The rows with the keys of all rows, in order of appearance; missing values are None."""
    rows = list(rows)
    keys = dict.fromkeys(key for row in rows for key in row)
    return tuple({key: row.get(key) for key in keys} for row in rows)


def _text(value: Value, spread: Value) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    uncertainty = "" if spread is None else f" ± {spread:.2g}"
    return f"{value:.4g}{uncertainty}"
