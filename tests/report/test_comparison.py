"""What may stand beside what in a comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from arvid.contracts import UserError
from arvid.evaluation.records import ResultRecord
from arvid.report import numbers
from arvid.report.comparison import Comparison

MakeRecords = Callable[..., list[ResultRecord]]
SaveRun = Callable[..., Path]


def test_reference_rows_come_first_and_quality_before_cost(runs: list[Path]) -> None:
    comparison = Comparison.from_runs([*runs, runs[0]])  # a run given twice counts once
    names = [row.name for row in comparison.rows]
    assert names[:4] == ["real", "reconstruction", "first frame repeated", "untrained"]
    assert names[4:] == ["nova", "next_block", "next_token"]
    keys = [column.key for column in comparison.columns]
    assert keys[0] == "sprites-t2v/fd-sprites"
    assert keys[-1] == "training/training_seconds"
    assert [c.block for c in comparison.columns] == sorted(
        (c.block for c in comparison.columns), reverse=True
    )


def test_the_best_is_marked_among_trained_rows_only(runs: list[Path]) -> None:
    comparison = Comparison.from_runs(runs)
    best = {
        column.key: [row.name for row in comparison.rows if row.cell(column).best]
        for column in comparison.columns
    }
    assert best["sprites-t2v/fd-sprites"] == ["nova"]
    assert best["sprites-fp/psnr"] == ["nova"]
    assert best["sprites-t2v/frames_per_second"] == ["next_block"]
    assert best["training/training_seconds"] == []  # all equal
    assert best["training/parameters"] == []  # neither more nor fewer is better
    alone = Comparison.from_runs([runs[0], runs[-1]])
    assert not any(cell.best for row in alone.rows for cell in row.cells.values())


def test_absent_numbers_are_blank_and_costs_leave_out_rows_without(runs: list[Path]) -> None:
    comparison = Comparison.from_runs(runs)
    costs = comparison.in_block("cost")
    assert comparison.rows[0].cell(costs[0]).text == ""
    assert comparison.rows_with(costs)[0].name == "untrained"
    assert len(comparison.rows_with(comparison.in_block("quality"))) == 7


def other_setting(record: ResultRecord) -> ResultRecord:
    setting = {k: v for k, v in record.setting.items() if k != "optimiser.lr"}
    return replace(record, setting={**setting, "data.size": 64}, setting_hash="0123")


def test_different_settings_are_refused_unless_allowed(
    make_records: MakeRecords, save_run: SaveRun, tmp_path: Path
) -> None:
    changed = [other_setting(record) for record in make_records("next_token")]
    found = [
        save_run(tmp_path / "a", make_records("nova")),
        save_run(tmp_path / "b", changed),
    ]
    with pytest.raises(UserError, match="--allow-different-settings") as caught:
        Comparison.from_runs(found)
    message = str(caught.value)
    assert "data.size: 32 (nova) · 64 (next_token)" in message
    assert "optimiser.lr: 0.0003 (nova) · absent (next_token)" in message
    assert "num_frames" not in message
    notes = Comparison.from_runs(found, allow_different_settings=True).notes
    assert "data.size: 32 (nova) · 64 (next_token)" in notes[0]


def test_an_option_that_is_newer_than_a_record_is_at_its_default_there(
    make_records: MakeRecords, save_run: SaveRun, tmp_path: Path
) -> None:
    def with_option(value: object) -> list[ResultRecord]:
        return [
            replace(r, setting={**r.setting, "model.optimizer.muon": value}, setting_hash="0123")
            for r in make_records("next_token")
        ]

    old = save_run(tmp_path / "old", make_records("nova"))
    new = save_run(tmp_path / "new", with_option(False))
    assert len(Comparison.from_runs([old, new]).rows) == 2
    other = save_run(tmp_path / "other", with_option("transformer"))
    with pytest.raises(UserError, match=r"muon: false \(nova\) · \"transformer\" \(next_token\)"):
        Comparison.from_runs([old, other])


def test_settings_that_differ_by_hash_alone_are_refused_too(
    make_records: MakeRecords, save_run: SaveRun, tmp_path: Path
) -> None:
    changed = [replace(record, setting_hash="0123") for record in make_records("nova")]
    runs = [save_run(tmp_path / "a", make_records("nova")), save_run(tmp_path / "b", changed)]
    with pytest.raises(UserError, match=r"setting hash: .*0123"):
        Comparison.from_runs(runs)


def test_protocols_of_one_name_and_different_hash_share_no_column(
    make_records: MakeRecords, save_run: SaveRun, tmp_path: Path
) -> None:
    record = make_records("nova")[0]
    protocol = {**record.protocol, "hash": "ffffff999", "num_clips": 16}
    other = replace(make_records("next_token")[0], protocol=protocol)
    runs = [save_run(tmp_path / "a", [record]), save_run(tmp_path / "b", [other])]
    comparison = Comparison.from_runs(runs)
    nova, next_token = comparison.rows
    assert not set(nova.cells) & {k for k in next_token.cells if "sprites" in k}
    assert "sprites-t2v [ffffff]/fd-sprites" in next_token.cells
    assert any("num_clips: 256" in note for note in comparison.notes)


def test_feature_networks_share_no_column(
    make_records: MakeRecords, save_run: SaveRun, tmp_path: Path
) -> None:
    record, other = make_records("nova")[0], make_records("next_token")[0]
    metric = replace(other.metrics[0], feature_sha256="0ther123")
    other = replace(other, metrics=(metric, *other.metrics[1:]))
    runs = [save_run(tmp_path / "a", [record]), save_run(tmp_path / "b", [other])]
    keys = [c.key for c in Comparison.from_runs(runs).columns if "fd-sprites" in c.key]
    assert keys == ["sprites-t2v/fd-sprites [fea7fe]", "sprites-t2v/fd-sprites [0ther1]"]


def test_a_failed_row_stays_and_says_why(
    make_records: MakeRecords, save_run: SaveRun, tmp_path: Path
) -> None:
    failed = replace(make_records("next_token")[0], metrics=(), error="out of memory")
    runs = [save_run(tmp_path / "a", make_records("nova")), save_run(tmp_path / "b", [failed])]
    comparison = Comparison.from_runs(runs)
    row = comparison.rows[1]
    assert row.cells["sprites-t2v/fd-sprites"].text == "failed"
    assert "sprites-fp/psnr" not in row.cells
    assert comparison.notes == ("next_token failed under sprites-t2v: out of memory",)


def test_rows_of_one_name_are_told_apart(
    make_records: MakeRecords, save_run: SaveRun, tmp_path: Path
) -> None:
    runs = [save_run(tmp_path / seed, make_records("nova")) for seed in ("seed0", "seed1")]
    names = [row.name for row in Comparison.from_runs(runs).rows]
    assert names == ["nova (seed0)", "nova (seed1)"]
    same = [save_run(tmp_path / part / "nova", make_records("nova")) for part in ("x", "y")]
    names = [row.name for row in Comparison.from_runs(same).rows]
    assert names == ["nova (1)", "nova (2)"]


def test_speeds_of_different_machines_are_noted(
    make_records: MakeRecords, save_run: SaveRun, tmp_path: Path
) -> None:
    fast = [replace(record, hardware="1 x H200") for record in make_records("next_token")]
    runs = [save_run(tmp_path / "a", make_records("nova")), save_run(tmp_path / "b", fast)]
    assert "1 x H200" in Comparison.from_runs(runs).warnings[-1]


def test_runs_that_cannot_be_compared_are_refused(
    make_records: MakeRecords, save_run: SaveRun, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="at least one run"):
        Comparison.from_runs([])
    run = save_run(tmp_path / "a", make_records("nova"))
    (run / "evaluation/again.json").write_bytes((run / "evaluation/sprites-t2v.json").read_bytes())
    with pytest.raises(UserError, match="two records of nova under the protocol sprites-t2v"):
        Comparison.from_runs([run])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.8, "1.80"),
        (999.7, "1.00k"),
        (1_312_000, "1.31M"),
        (8.5e9, "8.50G"),
        (2e13, "20.0T"),
    ],
)
def test_prefixed(value: float, text: str) -> None:
    assert numbers.prefixed(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.25 s"),
        (45, "45 s"),
        (59.7, "1 min 00 s"),
        (205, "3 min 25 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert numbers.duration(seconds) == text


def test_decimals_leave_three_digits_of_the_smallest() -> None:
    assert [numbers.decimals_for(v) for v in ([61.3, 900], [0.5, 0.9], [1200.0], [0.0])] == [
        1,
        3,
        0,
        0,
    ]
    assert numbers.with_uncertainty(61.34, 2.04, 1) == "61.3 ± 2.0"
    assert numbers.with_uncertainty(0.004, None, 1) == "0.004"
