"""Records of version 0.1, whose fingerprints held sizes, beside new ones of the same files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from arvid.contracts import UserError
from arvid.evaluation.records import ResultRecord
from arvid.files import sha256_json
from arvid.report.comparison import Comparison
from arvid.training.generator_module import differing
from arvid.training.setting import setting_hash

KEY = "data.train.fingerprint"
MakeRecords = Callable[..., list[ResultRecord]]
SaveRun = Callable[[Path, Sequence[ResultRecord]], Path]


def of_data(record: ResultRecord, data: str, earlier: str | None) -> ResultRecord:
    setting = {**record.setting, KEY: data}
    values = {k: v for k, v in record.protocol.items() if k != "hash"} | {"data": data}
    return dataclasses.replace(
        record,
        setting=setting,
        setting_hash=setting_hash(setting),
        protocol={**values, "hash": sha256_json(values)[:16]},
        earlier={KEY: earlier, "protocol.data": earlier} if earlier else {},
    )


def runs(
    tmp_path: Path, make_records: MakeRecords, save_run: SaveRun, earlier: str | None
) -> list[Path]:
    """A row of then and a row of now."""
    rows = {"nova": ("old", None), "next_token": ("new", earlier)}
    return [
        save_run(tmp_path / name, [of_data(r, *data) for r in make_records(name)])
        for name, data in rows.items()
    ]


def test_rows_of_the_same_files_compare(
    tmp_path: Path, make_records: MakeRecords, save_run: SaveRun
) -> None:
    comparison = Comparison.from_runs(runs(tmp_path, make_records, save_run, "old"))
    assert len(comparison.setting_hashes) == 1
    hashes = [sorted(r.protocol_hash for r in row.records) for row in comparison.rows]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("earlier", [None, "another"])
def test_rows_of_other_files_do_not(
    tmp_path: Path, make_records: MakeRecords, save_run: SaveRun, earlier: str | None
) -> None:
    with pytest.raises(UserError, match=KEY):
        Comparison.from_runs(runs(tmp_path, make_records, save_run, earlier))


def test_a_run_goes_on_from_a_checkpoint_of_then() -> None:
    then = {"setting": {KEY: "old", "seed": 0, "betas": [1]}}
    now = {"setting": {KEY: "new", "seed": 0, "betas": [1]}, "earlier": {KEY: "old"}}
    assert differing(then, now, ("setting",)) == differing(now, then, ("setting",)) == []
    assert differing({"setting": {**then["setting"], KEY: "x"}}, now, ("setting",))
    assert differing({"setting": {**then["setting"], "seed": 1}}, now, ("setting",))
