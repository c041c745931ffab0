"""Runs into rows: one name each, one record per protocol, and what their settings disagree on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from arvid.contracts import UserError
from arvid.evaluation.records import ResultRecord, load_run
from arvid.report._earlier import written_alike
from arvid.report._seeds import merge_seeds, seeds_of, without_seeds
from arvid.report.cells import Identity, Row, identity
from arvid.training.resuming import union_of, with_defaults


def read_rows(run_dirs: Sequence[str | Path]) -> list[Row]:
    """The rows of all runs, reference rows first, else in the order given; a run given twice counts once.

    Rows that differ in their training seed alone are one row. Raises UserError if there is no run or its records
    cannot be read or contradict each other.
    """
    if not run_dirs:
        raise UserError("nothing to compare: give at least one run folder.")
    rows: list[Row] = []
    runs = {run: load_run(run) for run in dict.fromkeys(Path(d).resolve() for d in run_dirs)}
    alike = iter(written_alike([record for records in runs.values() for record in records]))
    for run, loaded in runs.items():
        by_name: dict[str, list[ResultRecord]] = {}
        for record in islice(alike, len(loaded)):
            by_name.setdefault(record.name, []).append(record)
        for name, records in by_name.items():
            _require_consistent(run, records)
            rows.append(Row(name=name, records=tuple(records), run=run))
    return sorted(_with_unique_names(merge_seeds(rows)), key=lambda row: not row.is_reference)


def protocol_headings(rows: Sequence[Row]) -> dict[Identity, str]:
    """A unique heading for each protocol: its name, with a piece of the hash if several share the name.

    Those with most metrics come first.
    """
    records = [record for row in rows for record in row.records]
    records.sort(key=lambda record: -len(record.metrics))
    found = list(dict.fromkeys(identity(record) for record in records))
    names = [name for name, _ in found]
    return {
        (name, digest): name if names.count(name) == 1 else f"{name} [{digest[:6]}]"
        for name, digest in found
    }


def setting_differences(rows: Sequence[Row]) -> list[str]:
    """One line per setting key that differs, with its values and whose they are; empty if all hashes agree.

    A key that a record lacks, since it is older than the option, stands for the option's default. Rows made elsewhere
    have no setting and are left out; training seeds are those of trained rows.
    """
    records = [(row, record) for row in rows for record in row.records if record.setting]
    if len({record.setting_hash for _, record in records}) < 2:
        return []
    every = union_of([record.setting for _, record in records])
    settings = [(row, with_defaults(record.setting, every)) for row, record in records]
    lines = _differences([(row.name, without_seeds(setting)) for row, setting in settings])
    trained = [(row, record) for row, record in records if not row.is_reference]
    lines += _differences([(row.name, seeds_of(record.setting)) for row, record in trained])
    return lines or _hash_differences(records)


def protocol_differences(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Protocol names that stand for more than one protocol, with what these differ in."""
    headings = protocol_headings(rows)
    records = {headings[identity(r)]: r for row in rows for r in row.records}
    shared = {r.protocol_name for heading, r in records.items() if heading != r.protocol_name}
    return {
        name: _differences([(h, r.protocol) for h, r in records.items() if r.protocol_name == name])
        for name in sorted(shared)
    }


def _require_consistent(run: Path, records: Sequence[ResultRecord]) -> None:
    identities = [identity(record) for record in records]
    for found in identities:
        if identities.count(found) > 1:
            raise UserError(
                f"{run}: has two records of {records[0].name} under the protocol {found[0]}; "
                "keep one of them."
            )
    if len({record.row for record in records}) > 1:
        raise UserError(f"{run}: {records[0].name} is both a trained and a reference row.")


def _with_unique_names(rows: Sequence[Row]) -> list[Row]:
    """Rows of one name (two seeds of a method, say) get their folder, or else a number, behind it."""
    names = [row.name for row in rows]
    folders = [(row.name, row.run.name) for row in rows]
    seen: dict[str, int] = {}
    unique = []
    for row in rows:
        number = seen[row.name] = seen.get(row.name, 0) + 1
        if names.count(row.name) > 1:
            told_apart = folders.count((row.name, row.run.name)) == 1
            suffix = row.run.name if told_apart else str(number)
            row = dataclasses.replace(row, name=f"{row.name} ({suffix})")
        unique.append(row)
    return unique


def _hash_differences(records: Sequence[tuple[Row, ResultRecord]]) -> list[str]:
    """As `_differences`, for settings whose values are equal and whose hashes are not."""
    alike: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for row, record in records:
        values = json.dumps(record.setting, sort_keys=True)
        alike.setdefault(values, []).append((row.name, {"setting hash": record.setting_hash}))
    return [line for owned in alike.values() for line in _differences(owned)]


def _differences(owned: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """`key: value (whose) · value (whose)` for every key on which the named mappings disagree."""
    lines = []
    for key in sorted({key for _, mapping in owned for key in mapping}):
        owners: dict[str, list[str]] = {}
        for name, mapping in owned:
            value = json.dumps(mapping[key], sort_keys=True) if key in mapping else "absent"
            owners.setdefault(value, []).append(name)
        if len(owners) > 1:
            parts = (f"{v} ({', '.join(dict.fromkeys(who))})" for v, who in owners.items())
            lines.append(f"{key}: {' · '.join(parts)}")
    return lines
