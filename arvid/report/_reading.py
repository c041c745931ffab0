"""Rows from run folders: unique names, one record per protocol, and the differences between settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from arvid.contracts import UserError
from arvid.evaluation.records import ResultRecord, load_run
from arvid.report._earlier import in_common_form
from arvid.report._seeds import merge_seeds, seeds_of, without_seeds
from arvid.report.cells import Identity, Row, identity
from arvid.training.resuming import union_of, with_defaults


def read_rows(run_dirs: Sequence[str | Path]) -> list[Row]:
    """The rows of all runs: reference rows first, else in the given order. Duplicate runs count once.

    Rows that differ only in their training seed become one row. Raises UserError if there are no runs, or if records
    cannot be read or contradict each other.
    """
    if not run_dirs:
        raise UserError("nothing to compare: give at least one run folder.")
    rows: list[Row] = []
    runs = {run: load_run(run) for run in dict.fromkeys(Path(d).resolve() for d in run_dirs)}
    converted = iter(in_common_form([record for records in runs.values() for record in records]))
    for run, loaded in runs.items():
        by_name: dict[str, list[ResultRecord]] = {}
        for record in islice(converted, len(loaded)):
            by_name.setdefault(record.name, []).append(record)
        for name, records in by_name.items():
            _require_consistent(run, records)
            rows.append(Row(name=name, records=tuple(records), run=run))
    return sorted(_with_unique_names(merge_seeds(rows)), key=lambda row: not row.is_reference)


def protocol_headings(rows: Sequence[Row]) -> dict[Identity, str]:
    """A unique heading per protocol: its name, with a part of the hash if several protocols share the name.

    Protocols with most metrics come first.
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
    """One line per setting key that differs, with the values and their rows; empty if all hashes are equal.

    A key that a record lacks counts as the option's default, since the record may be older than the option. Rows
    without a setting are ignored. Training seeds are compared only between trained rows.
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
    """Names shared by several protocols -> the differences between these protocols."""
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
    """Make names unique: rows with the same name get their folder's name, or else a number, as a suffix."""
    names = [row.name for row in rows]
    folders = [(row.name, row.run.name) for row in rows]
    seen: dict[str, int] = {}
    unique = []
    for row in rows:
        number = seen[row.name] = seen.get(row.name, 0) + 1
        if names.count(row.name) > 1:
            is_unique = folders.count((row.name, row.run.name)) == 1
            suffix = row.run.name if is_unique else str(number)
            row = dataclasses.replace(row, name=f"{row.name} ({suffix})")
        unique.append(row)
    return unique


def _hash_differences(records: Sequence[tuple[Row, ResultRecord]]) -> list[str]:
    """Differences between hashes of settings with equal values."""
    by_values: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for row, record in records:
        values = json.dumps(record.setting, sort_keys=True)
        by_values.setdefault(values, []).append((row.name, {"setting hash": record.setting_hash}))
    return [line for named in by_values.values() for line in _differences(named)]


def _differences(named: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """`key: value (names) · value (names)` for every key whose value differs between the named mappings."""
    lines = []
    for key in sorted({key for _, mapping in named for key in mapping}):
        owners: dict[str, list[str]] = {}
        for name, mapping in named:
            value = json.dumps(mapping[key], sort_keys=True) if key in mapping else "absent"
            owners.setdefault(value, []).append(name)
        if len(owners) > 1:
            parts = (f"{v} ({', '.join(dict.fromkeys(names))})" for v, names in owners.items())
            lines.append(f"{key}: {' · '.join(parts)}")
    return lines
