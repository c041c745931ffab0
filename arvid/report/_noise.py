"""Whether the two best rows of a column differ by more than chance, at the 95 % level.

Where both records hold the numbers of the same clips one by one, their differences are tested (paired: what a clip
makes hard for both cancels). Otherwise the standard errors that the records state decide.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from arvid.evaluation.records import MetricValue, ResultRecord
from arvid.report._reading import protocol_headings
from arvid.report.cells import Row, identity

NORMAL = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class _Entry:
    row: Row
    record: ResultRecord
    metric: MetricValue


def ties(rows: Sequence[Row]) -> list[str]:
    """`FVD under some-protocol: one row and another (how it was tested)` for each metric whose two best trained
    rows are within noise."""
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
        entries.sort(key=lambda e: e.metric.value, reverse=metric.higher_is_better)
        how = _tie(*entries[:2]) if len(entries) > 1 else None
        if how:
            names = " and ".join(entry.row.name for entry in entries[:2])
            found.append(f"{metric.heading} under {heading}: {names} ({how})")
    return found


def _tie(a: _Entry, b: _Entry) -> str | None:
    """How two entries were found to be within noise; None if they are not, or nothing is known of it."""
    left, right = _per_clip(a), _per_clip(b)
    if left and left.keys() == right.keys() and len(left) > 1:
        differences = [left[clip] - right[clip] for clip in left]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        within = abs(statistics.fmean(differences)) <= t_quantile(len(differences) - 1) * error
        return f"paired over {len(differences)} clips" if within else None
    errors = (a.metric.standard_error, b.metric.standard_error)
    if errors[0] is None or errors[1] is None:
        return None
    freedom = min(_freedom(a.metric), _freedom(b.metric))
    limit = t_quantile(freedom) * math.hypot(errors[0], errors[1])
    return "by their spreads" if abs(a.metric.value - b.metric.value) <= limit else None


def _freedom(metric: MetricValue) -> int:
    return max((len(metric.folds) or metric.count or 2) - 1, 1)


def _per_clip(entry: _Entry) -> dict[tuple[str, str], float]:
    """The metric's number of each clip, by fold and clip; empty where the record has none."""
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
    """The 97.5 % point of Student's t, by the expansion in 1 / freedom of Abramowitz and Stegun, 26.7.5.

    Within 3 % from two degrees of freedom on; too small for one (where it is 12.7).
    """
    z, n = NORMAL, freedom
    terms = (
        (z**3 + z) / (4 * n),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3),
    )
    return z + sum(terms)
