"""Tests whether the two best rows of a column differ significantly, at the 95 % level.

If both records hold values of the same clips, the differences are tested (paired: the difficulty of a clip cancels).
Two or three seeds of a row say little about its deviation, so means over seeds are tested with the deviation of all
rows' seeds, as in `arvid.experiments.effects`. Otherwise the test uses the standard errors in the records.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from arvid.evaluation.records import MetricValue, ResultRecord
from arvid.report._reading import protocol_headings
from arvid.report._seeds import OF_SEEDS
from arvid.report.cells import Row, identity

NORMAL = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class _Entry:
    row: Row
    record: ResultRecord
    metric: MetricValue


def ties(rows: Sequence[Row]) -> list[str]:
    """One line per metric whose two best trained rows do not differ significantly.

    For example `FVD under some-protocol: one row and another (paired over 64 clips)`.
    """
    headings = protocol_headings(rows)
    columns: dict[tuple[str, str, str | None], list[_Entry]] = {}
    for row in rows:
        for record in () if row.is_reference else row.records:
            for metric in record.metrics:
                key = (headings[identity(record)], metric.name, metric.feature_sha256)
                columns.setdefault(key, []).append(_Entry(row, record, metric))
    found = []
    for (heading, _, _), entries in columns.items():
        metric = entries[0].metric
        if metric.higher_is_better is None:
            continue
        entries.sort(key=lambda e: e.metric.value, reverse=metric.higher_is_better)
        how = _tie(entries) if len(entries) > 1 else None
        if how:
            names = " and ".join(entry.row.name for entry in entries[:2])
            found.append(f"{metric.heading} under {heading}: {names} ({how})")
    return found


def _tie(ranked: Sequence[_Entry]) -> str | None:
    """The test by which the two best entries do not differ significantly; None if they do, or if none is possible."""
    a, b = ranked[:2]
    difference = abs(a.metric.value - b.metric.value)
    left, right = _per_clip(a), _per_clip(b)
    if left and left.keys() == right.keys() and len(left) > 1:
        differences = [left[clip] - right[clip] for clip in left]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        # paired t-test on the differences of clips
        within = abs(statistics.fmean(differences)) <= t_quantile(len(differences) - 1) * error
        return f"paired over {len(differences)} clips" if within else None
    if a.metric.spread_kind == b.metric.spread_kind == OF_SEEDS:
        deviation, freedom = _pooled([entry.metric for entry in ranked])
        error = deviation * math.sqrt(1 / len(a.metric.folds) + 1 / len(b.metric.folds))
        within = difference <= t_quantile(freedom) * error
        return "by the deviation between seeds, pooled over the rows" if within else None
    errors = (a.metric.standard_error, b.metric.standard_error)
    if errors[0] is None or errors[1] is None:
        return None
    # unpaired: standard errors add in quadrature; the smaller number of degrees of freedom is conservative
    freedom = min(_freedom(a.metric), _freedom(b.metric))
    within = difference <= t_quantile(freedom) * math.hypot(errors[0], errors[1])
    return "by their standard errors" if within else None


def _pooled(metrics: Sequence[MetricValue]) -> tuple[float, int]:
    """Standard deviation of one training's value, from the seeds of all rows that have several; degrees of freedom."""
    found = [metric.folds for metric in metrics if metric.spread_kind == OF_SEEDS]
    freedom = sum(len(values) - 1 for values in found)
    squares = sum((len(values) - 1) * statistics.variance(values) for values in found)
    return math.sqrt(squares / freedom), freedom


def _freedom(metric: MetricValue) -> int:
    return max((len(metric.folds) or metric.count or 2) - 1, 1)


def _per_clip(entry: _Entry) -> dict[tuple[str, str], float]:
    """The metric's value of each clip: (fold, clip) -> value; empty if the record has none."""
    if entry.record.per_clip is None:
        return {}
    path = entry.record.path(entry.record.per_clip)
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    name = entry.metric.name
    if not lines or name not in lines[0]:
        return {}
    return {(line["fold"], line["clip"]): float(line[name]) for line in lines}


def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t, by the expansion in 1 / freedom of Abramowitz and Stegun, 26.7.5.

    Accurate to 3 % for two or more degrees of freedom. For one it is too small (the exact value is 12.7).
    """
    z, n = NORMAL, freedom
    terms = (
        (z**3 + z) / (4 * n),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3),
    )
    return z + sum(terms)
