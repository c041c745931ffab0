"""Merges rows that differ only in their training seed: one row with mean and standard deviation over seeds.

A single training is one random sample. Standard errors over clips or folds do not include the variation between
trainings.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from statistics import fmean
from typing import Any

from arvid.contracts import UserError
from arvid.evaluation.records import (
    Budget,
    ResultRecord,
    SpreadKind,
    over_repeats,
    standard_error,
)
from arvid.metrics.rollout import StepCurve
from arvid.report.cells import Row, identity
from arvid.training.resuming import union_of, with_defaults
from arvid.training.setting import setting_hash

KEYS = ("seed", "data.seed")
"""Keys of a setting: the seed of the training, and the seed of the order of clips."""
OF_SEEDS: SpreadKind = "deviation of seeds"

Curve = tuple[dict[str, float | None], ...]
Frames = tuple[float | None, ...]


def merge_seeds(rows: Sequence[Row]) -> list[Row]:
    """The rows, with rows of the same method and different seeds merged at the position of the first.

    Raises UserError if the seeds were not scored under the same protocols and metrics.
    """
    groups: dict[str, list[Row]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(_method(row, rows) or str(i), []).append(row)
    merged: list[Row] = []
    for group in groups.values():
        seeds = {_seeds(row) for row in group}
        merged += [_mean_row(sorted(group, key=_seeds))] if len(seeds) == len(group) > 1 else group
    return merged


def seed_list(row: Row) -> str:
    """The different seeds of a merged row: `0, 1, 2`."""
    varying = [values for values in zip(*map(_seeds, row.seeds), strict=True) if len({*values}) > 1]
    return ", ".join("/".join(map(str, seed)) for seed in zip(*varying, strict=True))


def seeds_of(setting: Mapping[str, Any]) -> dict[str, Any]:
    """The seed keys of a setting."""
    return {key: setting[key] for key in KEYS if key in setting}


def without_seeds(setting: Mapping[str, Any]) -> dict[str, Any]:
    """A setting without its seed keys."""
    return {key: value for key, value in setting.items() if key not in KEYS}


def _seeds(row: Row) -> tuple[Any, ...]:
    return tuple(seeds_of(row.records[0].setting).values())


def _method(row: Row, rows: Sequence[Row]) -> str | None:
    """Key of a row's method (everything but the seed), as JSON; None for rows without a seed.

    An option that only newer rows have counts as its default in older rows. Options that depend on the protocol (the
    overlap of windows of longer clips) are compared later, when the records of a protocol are merged.
    """
    if row.is_reference or any(not seeds_of(r.setting) for r in row.records):
        return None
    if len({json.dumps(seeds_of(r.setting)) for r in row.records}) > 1:
        return None
    alike = [other for other in rows if other.records[0].factors == row.records[0].factors]
    records = [record for other in alike for record in other.records]
    settings, options = union_of(r.setting for r in records), union_of(r.options for r in records)

    def options_of(record: ResultRecord) -> dict[str, Any]:
        return with_defaults(record.options, options, paradigm=record.factors.get("paradigm"))

    of_protocols = {
        key
        for other in alike
        for key in options
        if len({json.dumps(options_of(record).get(key)) for record in other.records}) > 1
    }
    found = [
        (
            r.factors,
            {key: value for key, value in options_of(r).items() if key not in of_protocols},
            without_seeds(with_defaults(r.setting, settings)),
        )
        for r in row.records
    ]
    return json.dumps(found[0], sort_keys=True) if all(x == found[0] for x in found) else None


def _mean_row(rows: Sequence[Row]) -> Row:
    by_protocol = [{identity(r): r for r in row.records} for row in rows]
    for row, found in zip(rows, by_protocol, strict=True):
        for name, _ in found.keys() ^ by_protocol[0].keys():
            raise UserError(
                f"{rows[0].run} and {row.run} are seeds of one method, but only one is scored under {name} "
                "(with these clips). Evaluate the other too, or compare without it."
            )
    records = [_mean_record([found[p] for found in by_protocol]) for p in by_protocol[0]]
    name = f"{_name(rows)} ({len(rows)} seeds)"
    return Row(name=name, records=tuple(records), run=rows[0].run, seeds=tuple(rows))


def _name(rows: Sequence[Row]) -> str:
    """Common part of the names: `nova` for nova-seed0 and nova-seed1."""
    names = [row.name for row in rows]
    if len(set(names)) == 1:
        return names[0]
    alike = takewhile(lambda letters: len({*letters}) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in alike)
    stem = re.sub(r"([\W_]+(seed|s)?)?[\W_]*\d*$", "", common)
    return stem or rows[0].factors.get("paradigm", names[0])


def _mean_record(records: Sequence[ResultRecord]) -> ResultRecord:
    """Record with means over seeds. Its clips are those of the first seed."""
    first = records[0]
    kinds = [[(m.name, m.feature_sha256) for m in r.metrics] for r in records if not r.error]
    if any(found != kinds[0] for found in kinds):
        raise UserError(
            f"The seeds of {first.name} were scored under {first.protocol_name} with different metrics or feature "
            "networks. Evaluate them again."
        )
    every = union_of(record.options for record in records)
    options = [with_defaults(r.options, every, paradigm=r.factors.get("paradigm")) for r in records]
    if any(found != options[0] for found in options):
        raise UserError(
            f"The seeds of {first.name} were scored under {first.protocol_name} with different options. Evaluate them "
            "again with equal ones, or compare them one by one."
        )
    setting = _setting([record.setting for record in records])
    error = next((record.error for record in records if record.error), None)
    return dataclasses.replace(
        first,
        setting=setting,
        setting_hash=setting_hash(setting),
        metrics=() if error else over_repeats([r.metrics for r in records], OF_SEEDS),
        budget=_mean_budget([record.budget for record in records]),
        curve=_mean_curve([record.curve for record in records]),
        steps_curve={
            k: _mean_frames([r.steps_curve[k] for r in records])
            for k in _common(records, "steps_curve")
        },
        rollout={
            k: _mean_steps([r.rollout[k] for r in records]) for k in _common(records, "rollout")
        },
        per_clip=None,
        error=error,
        checkpoint_sha256=None,
    )


def _setting(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The common setting. A seed that differs becomes a list."""
    seeds = {key: [setting[key] for setting in settings] for key in seeds_of(settings[0])}
    return {
        **settings[0],
        **{key: found if len({*found}) > 1 else found[0] for key, found in seeds.items()},
    }


def _common(records: Sequence[ResultRecord], field: str) -> list[str]:
    """Keys of a dict field that all records have."""
    return [k for k in getattr(records[0], field) if all(k in getattr(r, field) for r in records)]


def _mean_budget(budgets: Sequence[Budget]) -> Budget:
    """The counts of the first budget (equal for all), with the means of measured speeds and times."""
    return dataclasses.replace(
        budgets[0],
        frames_per_second=_mean([budget.frames_per_second for budget in budgets]),
        training_seconds=_mean([budget.training_seconds for budget in budgets]),
    )


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean curve at the steps where all curves have a value."""
    found: dict[float, dict[str, list[float]]] = {}
    for point in (point for curve in curves for point in curve):
        step = point.get("step")
        for key, value in point.items():
            if step is not None and value is not None and key != "step":
                found.setdefault(step, {}).setdefault(key, []).append(value)
    means = {
        step: {key: fmean(values) for key, values in point.items() if len(values) == len(curves)}
        for step, point in sorted(found.items())
    }
    return tuple({"step": step, **point} for step, point in means.items() if point)


def _mean_frames(curves: Sequence[Frames]) -> Frames:
    return tuple(map(_mean, zip(*curves, strict=True)))


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean; None if a value is None."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _mean_steps(curves: Sequence[StepCurve]) -> StepCurve:
    """Mean curve with the standard error over seeds."""
    columns = list(zip(*(curve.mean for curve in curves), strict=True))
    errors = [standard_error(column) or 0.0 for column in columns]
    mean = tuple(map(fmean, columns))
    return dataclasses.replace(curves[0], mean=mean, standard_error=tuple(errors))
