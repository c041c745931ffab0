"""Converts records so that those of earlier versions of arvid can be compared with new ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from arvid.evaluation.records import ResultRecord
from arvid.files import sha256_json
from arvid.training.setting import setting_hash

DATA = "protocol.data"


def in_common_form(records: Sequence[ResultRecord]) -> list[ResultRecord]:
    """The records with equal values in equal form.

    A new record also stores values in their earlier form (`earlier`). If another record contains this earlier form, the
    new record gets it too.
    """
    seen = {(key, value) for r in records for key, value in r.setting.items() if _is_text(value)}
    seen |= {(DATA, r.protocol["data"]) for r in records if _is_text(r.protocol.get("data"))}
    return [_as_before(record, seen) for record in records]


def _as_before(record: ResultRecord, seen: set[tuple[str, str]]) -> ResultRecord:
    before = {key: value for key, value in record.earlier.items() if (key, value) in seen}
    data = before.pop(DATA, None)
    if data is not None:
        values = {key: value for key, value in record.protocol.items() if key != "hash"}
        values["data"] = data
        protocol = {**values, "hash": sha256_json(values)[:16]}
        record = dataclasses.replace(record, protocol=protocol)
    if before:
        setting = {**record.setting, **{k: v for k, v in before.items() if k in record.setting}}
        record = dataclasses.replace(record, setting=setting, setting_hash=setting_hash(setting))
    return record


def _is_text(value: object) -> bool:
    return isinstance(value, str)
