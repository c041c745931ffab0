"""Writes what the matrix says: tables, sentences, figures and the page."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arvid.benchmarks.matrix import _figures, _longer
from arvid.benchmarks.matrix._longer import Longer
from arvid.benchmarks.matrix._rows import MatrixRow
from arvid.benchmarks.matrix._values import (
    Cell,
    Curves,
    Metric,
    costs_of,
    metrics_of,
    training_flops,
)
from arvid.contracts import UserError
from arvid.evaluation.curves import read_curve
from arvid.evaluation.records import ResultRecord
from arvid.experiments.effects import sentences
from arvid.experiments.equal import TOLERANCE
from arvid.experiments.paper import table, validation_losses, write_page
from arvid.experiments.scaling import PowerLaw, fit_power_law
from arvid.experiments.variants import folders
from arvid.report import tables
from arvid.report.numbers import decimals_for, fixed, with_uncertainty
from arvid.report.page import write_report

MAX_DECIMALS = 3
SCALING_SIZES = 3
"""Fewest sizes for a power law."""


def write(
    rows: Sequence[MatrixRow],
    records: Sequence[ResultRecord],
    longer: Longer,
    options: argparse.Namespace,
    notes: Sequence[str],
) -> None:
    """Write all results to --out. Raises UserError if budgets that were to be equal are not."""
    comparison = write_report(
        folders(records),
        options.out,
        title=options.title,
        allow_different_settings=options.equal == "flops",
    )
    size = options.sizes[-1]
    metrics = metrics_of(rows, records, size)
    chosen = shown(metrics)
    first = metrics[0]
    costs = costs_of(rows, records, first.protocol, size)
    budget = budget_line(rows, records, options)
    _figures.draw_matrix(options.out / "matrix", chosen, options.orders)
    _figures.draw_costs(options.out / "costs", first, costs, options.orders)
    if all(metric.effects for metric in chosen):
        _figures.draw_effects(options.out / "effects", chosen)
    curves = drift(rows, records, size)
    if curves:
        _figures.draw_drift(options.out / "drift", curves, options.orders)
    if longer.curves:
        _longer.draw(options.out / "longer", longer, options.orders)
    laws = scaling(rows, records, options)
    lines = ["## What it says", "", *what_it_says(chosen), ""]
    lines += [*budget, ""]
    for metric in metrics:
        lines += [f"## {metric.title}, {metric.protocol}", "", *matrix_table(metric, options), ""]
    lines += ["## Costs of one training and one clip", "", *cost_table(costs), ""]
    lines += [*_longer.lines_of(longer), *scaling_lines(laws), tables.markdown(comparison)]
    results = {
        "scale": options.scale,
        "equal": options.equal,
        "size": size,
        "seeds": options.seeds,
        "metrics": [plain(metric) for metric in metrics],
        "costs": {n: {" ".join(c): v for c, v in found.items()} for n, found in costs.items()},
        "drift": plain_curves(curves),
        "longer": plain_curves(longer.curves),
        "scaling": {
            title: {" ".join(cell): dataclasses.asdict(law) for cell, law in found.items()}
            for title, found in laws.items()
        },
        "rows": tables.to_dict(comparison)["rows"],
    }
    write_page(options.out, options.title, lines, [NOTE, *notes], results)
    print(f"Open {options.out / 'index.html'} to see the clips.")


NOTE = (
    "All rows have the same clips, tokenizer of their token type, optimiser and number of tokens. ± is the standard "
    "error over training seeds (over clips with one seed). Bold: not significantly worse than the best (95 %)."
)


def shown(metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics of figures and sentences: the first two of each protocol."""
    found: dict[str, list[Metric]] = {}
    for metric in metrics:
        found.setdefault(metric.protocol, []).append(metric)
    return [metric for of_protocol in found.values() for metric in of_protocol[:2]]


def what_it_says(metrics: Sequence[Metric]) -> list[str]:
    """The sentences of the analysis, as a list."""
    return [
        f"- {sentence}"
        for metric in metrics
        if metric.effects
        for sentence in sentences(
            metric.effects,
            metric=metric.label,
            higher_is_better=metric.higher_is_better,
            unit=metric.unit,
        )
    ]


def matrix_table(metric: Metric, options: argparse.Namespace) -> list[str]:
    """Orders as rows, token types as columns, and the reference rows below."""
    sign = 1 if metric.higher_is_better else -1
    best = max(metric.cells, key=lambda cell: sign * metric.mean(cell))
    decimals = min(decimals_for([metric.mean(cell) for cell in metric.cells]), MAX_DECIMALS)
    made = []
    for order in options.orders:
        texts = []
        for kind in options.token_types:
            cell = (order, kind)
            text = with_uncertainty(metric.mean(cell), metric.standard_error(cell), decimals)
            texts.append(f"**{text}**" if is_near(metric, cell, best) else text)
        made.append([order, *texts])
    for name, value in metric.references.items():
        made.append([f"*{name}*", fixed(value, decimals), *[""] * (len(options.token_types) - 1)])
    return table(("", *(f"{kind} tokens" for kind in options.token_types)), made)


def is_near(metric: Metric, cell: Cell, best: Cell) -> bool:
    """Whether a cell is not significantly worse than the best (95 %), by the analysis of effects if there is one."""
    if metric.effects is not None:
        return not metric.effects.differ(cell, best)
    error = (metric.standard_error(cell) ** 2 + metric.standard_error(best) ** 2) ** 0.5
    return abs(metric.mean(cell) - metric.mean(best)) <= 1.96 * error


def cost_table(costs: Mapping[str, Mapping[Cell, float]]) -> list[str]:
    """Costs by cell."""
    cells = list(dict.fromkeys(cell for found in costs.values() for cell in found))
    return table(
        ("", *costs),
        [[" ".join(cell), *(found.get(cell) for found in costs.values())] for cell in cells],
    )


def budget_line(
    rows: Sequence[MatrixRow], records: Sequence[ResultRecord], options: argparse.Namespace
) -> list[str]:
    """How far the budgets of a size are apart. Raises UserError if equal budgets are not equal."""
    if options.equal == "steps":
        return [
            "Equal for all rows: steps, depth and width. Their FLOPs and parameters differ (below)."
        ]
    by_name = {row.name: row for row in rows}
    found: dict[str, list[float]] = {}
    for record in records:
        row = by_name.get(record.name)
        value = training_flops(record) if options.equal == "flops" else record.budget.parameters
        if row is not None and value:
            found.setdefault(row.size, []).append(float(value))
    spread = max(max(values) / min(values) - 1 for values in found.values())
    if spread > 2 * TOLERANCE:
        raise UserError(f"The {options.equal} of the rows differ by {spread:.1%}.")
    return [
        f"Equal for all rows: {options.equal}. The counted values differ by at most {spread:.1%}."
    ]


def drift(
    rows: Sequence[MatrixRow], records: Sequence[ResultRecord], size: str
) -> dict[str, Curves]:
    """Metric title -> cell -> values of all seeds at each frame."""
    by_name = {row.name: row for row in rows if row.size == size}
    found: dict[str, dict[Cell, list[tuple[float | None, ...]]]] = {}
    for record in records:
        row = by_name.get(record.name)
        if row is None:
            continue
        labels = {
            m.name: f"{m.heading} ({m.unit})" if m.unit else m.heading for m in record.metrics
        }
        for name, values in record.steps_curve.items():
            title = f"{labels.get(name, name)} at each frame"
            cell = (row.order, row.token_type)
            found.setdefault(title, {}).setdefault(cell, []).append(tuple(values))
    return {
        title: {cell: np.array(curves, dtype=float) for cell, curves in cells.items()}
        for title, cells in found.items()
    }


def scaling(
    rows: Sequence[MatrixRow], records: Sequence[ResultRecord], options: argparse.Namespace
) -> dict[str, dict[Cell, PowerLaw]]:
    """Title -> cell -> power law over training FLOPs, and their figures; empty with fewer than three sizes."""
    if len(options.sizes) < SCALING_SIZES:
        return {}
    laws = {}
    protocol = next(record.protocol_name for record in records)
    for title, points in _scaling_points(rows, records, protocol, options).items():
        laws[title] = {cell: fit_power_law(found) for cell, found in points.items()}
        name = f"scaling-{'loss' if 'loss' in title else 'quality'}"
        _figures.draw_scaling(options.out / name, title, points, laws[title], options.orders)
    return laws


Points = dict[Cell, dict[float, list[float]]]


def _scaling_points(
    rows: Sequence[MatrixRow],
    records: Sequence[ResultRecord],
    protocol: str,
    options: argparse.Namespace,
) -> dict[str, Points]:
    by_name = {row.name: row for row in rows}
    found: dict[str, Points] = {}
    for record in records:
        row, flops = by_name.get(record.name), training_flops(record)
        if row is None or flops is None or record.protocol_name != protocol:
            continue
        first = record.metrics[0]
        values = {first.heading: first.value}
        losses = validation_losses(read_curve(options.out / row.name))
        if losses:
            values["validation loss"] = losses[-1]
        for title, value in values.items():
            cells = found.setdefault(title, {})
            cells.setdefault((row.order, row.token_type), {}).setdefault(flops, []).append(value)
    return found


def scaling_lines(laws: Mapping[str, Mapping[Cell, PowerLaw]]) -> list[str]:
    """A table of exponents for each value."""
    lines = []
    for title, found in laws.items():
        made = [
            [" ".join(cell), f"{e.value:.3f}", f"{e.low:.3f} to {e.high:.3f}"]
            for cell, law in found.items()
            for e in (law.exponent,)
        ]
        lines += [f"## Scaling: {title} against training FLOPs", ""]
        lines += [*table(("", "exponent", "95 % interval"), made), ""]
    return lines


def plain_curves(curves: Mapping[str, Curves]) -> dict[str, dict[str, list[list[float | None]]]]:
    """Curves for results.json: label -> cell -> values of each seed."""
    return {
        label: {
            " ".join(cell): [
                [None if math.isnan(v) else v for v in seed] for seed in values.tolist()
            ]
            for cell, values in cells.items()
        }
        for label, cells in curves.items()
    }


def plain(metric: Metric) -> dict[str, Any]:
    """A metric for results.json."""
    effects = metric.effects
    return {
        "name": metric.name,
        "label": metric.label,
        "unit": metric.unit,
        "protocol": metric.protocol,
        "cells": {" ".join(c): [m.value for m in found] for c, found in metric.cells.items()},
        "references": metric.references,
        "shares": {n: dataclasses.asdict(s) for n, s in effects.shares.items()}
        if effects
        else None,
    }
