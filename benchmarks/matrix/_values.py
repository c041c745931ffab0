"""The measured values of the matrix, by metric and cell."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from arvid.benchmarks.matrix._rows import MatrixRow
from arvid.evaluation.records import ResultRecord
from arvid.experiments.effects import Effects, Measured

Cell = tuple[str, str]
"""Order and token type."""
Curves = Mapping[Cell, np.ndarray]
"""Order and token type -> values (seeds, steps); nan where a step has none."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric under one protocol, for the networks of one size."""

    name: str
    label: str
    unit: str
    higher_is_better: bool
    protocol: str
    cells: dict[Cell, list[Measured]] = field(default_factory=dict)
    """One value per seed."""
    references: dict[str, float] = field(default_factory=dict)
    """Values of the reference rows."""

    @property
    def title(self) -> str:
        """Label, unit and direction."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.label}{unit} {'↑' if self.higher_is_better else '↓'}"

    def mean(self, cell: Cell) -> float:
        """Mean over seeds."""
        return statistics.fmean(m.value for m in self.cells[cell])

    def standard_error(self, cell: Cell) -> float:
        """Standard error of the mean over seeds; with one seed that of the value over clips."""
        values = [m.value for m in self.cells[cell]]
        if len(values) == 1:
            return self.cells[cell][0].standard_error
        return statistics.stdev(values) / len(values) ** 0.5

    @cached_property
    def effects(self) -> Effects | None:
        """The two-way analysis; None with fewer than two orders or token types."""
        orders, types = {order for order, _ in self.cells}, {kind for _, kind in self.cells}
        return Effects(self.cells) if len(orders) > 1 and len(types) > 1 else None


def metrics_of(
    rows: Sequence[MatrixRow], records: Sequence[ResultRecord], size: str
) -> list[Metric]:
    """All metrics with a better end that every row of a size has, in the order of the protocols."""
    by_name = {row.name: row for row in rows if row.size == size}
    found: dict[tuple[str, str], Metric] = {}
    for record in records:
        row = by_name.get(record.name)
        for m in record.metrics:
            if row is None and record.row != "reference":
                continue
            if m.higher_is_better is None:  # no best cell; the page has the values
                continue
            metric = found.setdefault(
                (record.protocol_name, m.name),
                Metric(
                    name=m.name,
                    label=m.heading,
                    unit=m.unit,
                    higher_is_better=m.higher_is_better,
                    protocol=record.protocol_name,
                ),
            )
            if row is None:
                metric.references[record.name] = m.value
            else:
                value = Measured(m.value, m.standard_error or 0.0)
                metric.cells.setdefault((row.order, row.token_type), []).append(value)
    return [metric for metric in found.values() if metric.cells]


def mean_of(values: Mapping[Cell, Sequence[float]]) -> dict[Cell, float]:
    """Means over seeds."""
    return {cell: statistics.fmean(found) for cell, found in values.items()}


def costs_of(
    rows: Sequence[MatrixRow], records: Sequence[ResultRecord], protocol: str, size: str
) -> dict[str, dict[Cell, float]]:
    """Mean costs by name and cell: `training FLOPs`, `seconds per clip`, `evaluations`, `parameters`.

    The seconds are those of the scored batches, decoding included.
    """
    by_name = {row.name: row for row in rows if row.size == size}
    found: dict[str, dict[Cell, list[float]]] = {}
    for record in records:
        row = by_name.get(record.name)
        if row is None or record.protocol_name != protocol:
            continue
        for name, value in _costs(record).items():
            found.setdefault(name, {}).setdefault((row.order, row.token_type), []).append(value)
    return {name: mean_of(values) for name, values in found.items()}


def training_flops(record: ResultRecord) -> float | None:
    """FLOPs of a record's whole training."""
    flops, steps = record.budget.flops_per_training_clip, record.budget.training_steps
    if flops is None or steps is None:
        return None
    return flops * steps * float(record.setting["data.clips_per_step"])


def _costs(record: ResultRecord) -> dict[str, float]:
    budget = record.budget
    frames = record.setting["data.clip_shape"][0] - record.protocol.get("condition_frames", 0)
    pace = budget.frames_per_second
    found = {
        "training FLOPs": training_flops(record),
        "seconds per clip": frames / pace if pace else None,
        "evaluations": float(sum(budget.evaluations.values())) or None,
        "parameters": budget.parameters,
    }
    return {name: float(value) for name, value in found.items() if value is not None}
