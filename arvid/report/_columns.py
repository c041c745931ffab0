"""Columns and cells from records: the values that may share a column, their texts, and the best of each column."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from arvid.evaluation.records import Budget, MetricValue, ResultRecord
from arvid.report import numbers
from arvid.report._reading import protocol_headings
from arvid.report._seeds import OF_SEEDS
from arvid.report.cells import Cell, Column, Row, identity

TRAINING = "training"
"""Heading of the costs that do not depend on a protocol."""

UNCERTAINTIES = {
    "": "uncertainty that the record states",
    "standard error": "standard error",
    "bootstrap": "bootstrap standard error",
    "deviation of folds": "standard deviation over folds",
    "deviation of seeds": "standard deviation over training seeds",
}
"""Kind of a record's `spread` -> its name for readers."""

Found = tuple[Column, Cell]


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """A column for one field of Budget."""

    field: str
    label: str
    detail: str
    show: Callable[[float], str] | None = None
    """Form of a value; None: one form for the column, by `numbers.alike`."""
    higher_is_better: bool | None = False

    def column(self, group: str) -> Column:
        return Column(
            key=f"{group}/{self.field}",
            label=self.label,
            group=group,
            block="cost",
            higher_is_better=self.higher_is_better,
            detail=self.detail,
        )

    def cell(self, value: float) -> Cell:
        return Cell(value=value, text=self.show(value) if self.show else "")


_GENERATION = (
    _Cost(
        field="flops_per_generated_clip",
        label="FLOPs / clip",
        detail="Floating-point operations to generate one clip, counted, not estimated.",
    ),
    _Cost(
        field="frames_per_second",
        label="frames / s",
        detail="Frames generated per second, decoding included, on the hardware of the record.",
        higher_is_better=True,
    ),
)
_TRAINING = (
    _Cost(
        field="parameters",
        label="parameters",
        detail="Parameters of the generator, embeddings included; the tokenizer is not counted.",
        higher_is_better=None,
    ),
    _Cost(
        field="training_seconds",
        label="training time",
        show=numbers.duration,
        detail="Wall time of training the generator, on the hardware of the record.",
    ),
)


def build(rows: Sequence[Row]) -> tuple[tuple[Column, ...], tuple[Row, ...]]:
    """All columns (quality before cost, sorted by protocol), and the rows with their cells."""
    headings = protocol_headings(rows)
    columns: dict[str, Column] = {}
    raw: dict[str, dict[str, Cell]] = {}
    for row in sorted(rows, key=lambda row: row.is_reference):  # trained rows decide the order
        cells = raw[row.name] = {}
        for column, cell in _cells_of(row, rows):
            columns.setdefault(column.key, column)
            cells[column.key] = cell
    order = [*headings.values(), TRAINING]
    ordered = sorted(columns.values(), key=lambda c: (c.block == "cost", order.index(c.group)))
    for column in ordered:
        _finish(column, rows, raw)
    return tuple(ordered), tuple(dataclasses.replace(r, cells=raw[r.name]) for r in rows)


def _cells_of(row: Row, rows: Sequence[Row]) -> Iterator[Found]:
    headings = protocol_headings(rows)
    for record in row.records:
        heading = headings[identity(record)]
        for metric in record.metrics:
            yield _metric(record, metric, heading, _shares_name(metric, record, rows))
        yield from _generation_costs(record.budget, heading)
    for cost in _TRAINING:
        values = [getattr(r.budget, cost.field) for r in row.records]
        # the records of a row repeat its training costs: one is enough
        for value in [v for v in values if v is not None][:1]:
            yield cost.column(TRAINING), cost.cell(value)


def _metric(record: ResultRecord, metric: MetricValue, heading: str, ambiguous: bool) -> Found:
    suffix = f" [{(metric.feature_sha256 or 'none')[:6]}]" if ambiguous else ""
    column = Column(
        key=f"{heading}/{metric.name}{suffix}",
        label=metric.heading + suffix,
        group=heading,
        block="quality",
        higher_is_better=metric.higher_is_better,
        unit=metric.unit,
        detail=_metric_detail(record, metric),
    )
    seeds = f" of each of {len(metric.folds)} seeds" if metric.spread_kind == OF_SEEDS else ""
    count = f"{metric.count} samples{seeds}" if metric.count is not None else ""
    cell = Cell(value=metric.value, spread=metric.spread, count=metric.count, detail=count)
    return column, cell


def _metric_detail(record: ResultRecord, metric: MetricValue) -> str:
    better = {True: "higher is better", False: "lower is better", None: "compare with real clips"}
    parts = [
        f"{metric.name}: {better[metric.higher_is_better]}",
        f"protocol {record.protocol_name} ({record.protocol_hash[:12]})",
    ]
    if metric.feature_network:
        weights = f" (weights {metric.feature_sha256[:12]})" if metric.feature_sha256 else ""
        parts.append(f"feature network {metric.feature_network}{weights}")
    if metric.spread is not None:
        parts.append(f"± is the {UNCERTAINTIES[metric.spread_kind]}")
    return " · ".join(parts)


def _shares_name(metric: MetricValue, record: ResultRecord, rows: Sequence[Row]) -> bool:
    """Whether this metric was computed with several feature networks under this protocol."""
    networks = {
        other.feature_sha256
        for row in rows
        for r in row.records
        if identity(r) == identity(record)
        for other in r.metrics
        if other.name == metric.name
    }
    return len(networks) > 1


def _generation_costs(budget: Budget, heading: str) -> Iterator[Found]:
    if budget.evaluations:
        yield _EVALUATIONS.column(heading), _evaluations(budget.evaluations)
    for cost in _GENERATION:
        value = getattr(budget, cost.field)
        if value is not None:
            yield cost.column(heading), cost.cell(value)


_EVALUATIONS = _Cost(
    field="evaluations",
    label="evaluations",
    show=str,
    detail="Evaluations of each network for one generated clip, the main network first.",
    higher_is_better=None,  # evaluations of different networks have different costs; compare FLOPs
)


def _evaluations(evaluations: dict[str, int]) -> Cell:
    return Cell(
        value=sum(evaluations.values()),
        text=" + ".join(str(n) for n in evaluations.values()),
        detail=" + ".join(f"{n} {network}" for network, n in evaluations.items()),
    )


def _finish(column: Column, rows: Sequence[Row], raw: dict[str, dict[str, Cell]]) -> None:
    """Fill in the texts of a column; mark its best trained cells and its failures."""
    trained = {row.name for row in rows if not row.is_reference}
    values = {name: c.value for name, cells in raw.items() if (c := cells.get(column.key))}
    own = [v for name, v in values.items() if name in trained and v is not None]
    decimals = numbers.decimals_for(own or [v for v in values.values() if v is not None])
    alike = numbers.alike([v for v in values.values() if v is not None])
    best = _best(column, own)
    for row in rows:
        cell = raw[row.name].get(column.key)
        if cell is None:
            if reason := _failure(row, column, rows):
                raw[row.name][column.key] = Cell(text="failed", detail=reason)
            continue
        text = cell.text or (
            alike(cell.value or 0.0)
            if column.block == "cost"
            else numbers.with_uncertainty(cell.value or 0.0, cell.spread, decimals)
        )
        is_best = row.name in trained and best is not None and cell.value == best
        raw[row.name][column.key] = dataclasses.replace(cell, text=text, best=is_best)


def _best(column: Column, values: Sequence[float]) -> float | None:
    if column.higher_is_better is None or len(set(values)) < 2:
        return None
    return max(values) if column.higher_is_better else min(values)


def _failure(row: Row, column: Column, rows: Sequence[Row]) -> str | None:
    headings = protocol_headings(rows)
    return next((r.error for r in row.records if headings[identity(r)] == column.group), None)
