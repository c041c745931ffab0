"""Tables say when the two best rows of a column are within noise of each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arvid.evaluation.records import MetricValue, ResultRecord
from arvid.report import tables
from arvid.report._noise import t_quantile
from arvid.report.comparison import Comparison

MakeRecords = Callable[..., list[ResultRecord]]
SaveRun = Callable[..., Path]


@pytest.fixture
def compare(
    make_records: MakeRecords, save_run: SaveRun, tmp_path: Path
) -> Callable[..., Comparison]:
    """The comparison of rows that scored given values (and those of each clip) in one metric."""

    def make(rows: dict[str, dict[str, Any]], per_clip: dict[str, Any] | None = None) -> Comparison:
        runs = []
        for name, values in rows.items():
            record = make_records("nova")[0]
            metric = MetricValue(name="psnr", protocol="sprites-t2v", **{"count": 50, **values})
            record = replace(record, name=name, metrics=(metric,))
            if per_clip:
                record = replace(record, per_clip="clips.csv")
            runs.append(save_run(tmp_path / name, [record]))
            lines = [f"0,{i},{v}" for i, v in enumerate((per_clip or {}).get(name, ()))]
            (runs[-1] / "evaluation/clips.csv").write_text("\n".join(["fold,clip,psnr", *lines]))
        return Comparison.from_runs(runs)

    return make


def ties(notes: Sequence[str]) -> list[str]:
    return [note for note in notes if note.startswith("Within noise")]


def test_standard_errors_decide_where_nothing_else_is_known(
    compare: Callable[..., Comparison],
) -> None:
    rows = {"a": {"value": 20.0, "spread": 0.5}, "b": {"value": 21.0, "spread": 0.5}}
    found = compare(rows)
    assert ties(found.notes) == [
        "Within noise of the best (95 %): psnr under sprites-t2v: b and a (by their standard errors)"
    ]
    for shown in (tables.text(found), tables.markdown(found), tables.tex(found)):
        assert "Within noise" in shown
    rows["b"]["value"] = 22.0
    assert ties(compare(rows).notes) == []


def test_only_the_two_best_count(compare: Callable[..., Comparison]) -> None:
    rows = {name: {"value": v, "spread": 0.1} for name, v in (("a", 9), ("b", 5.01), ("c", 5))}
    assert ties(compare(rows).notes) == []
    flipped = {name: {**v, "higher_is_better": False} for name, v in rows.items()}
    assert "c and b" in ties(compare(flipped).notes)[0]


def test_folds_are_few(compare: Callable[..., Comparison]) -> None:
    """Three folds: the standard error is the deviation over the root of 3, and t is 4.3."""
    folds = {"spread": 1.0, "folds": (1.0, 2.0, 3.0), "spread_kind": "deviation of folds"}
    limit = 4.303 * (2 / 3) ** 0.5
    for difference, within in ((0.9 * limit, True), (1.1 * limit, False)):
        rows = {"a": {"value": 10.0, **folds}, "b": {"value": 10.0 + difference, **folds}}
        assert bool(ties(compare(rows).notes)) is within


def test_clips_in_common_are_compared_one_by_one(compare: Callable[..., Comparison]) -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(20, 5, 50)
    clips = {"a": hard, "b": hard + 0.5 + rng.normal(0, 0.3, 50)}
    rows = {n: {"value": float(v.mean()), "spread": 5 / 50**0.5} for n, v in clips.items()}
    assert "by their standard errors" in ties(compare(rows).notes)[0]
    assert ties(compare(rows, clips).notes) == []
    clips["b"] = hard + rng.normal(0, 0.3, 50)
    assert "paired over 50 clips" in ties(compare(rows, clips).notes)[0]


def test_nothing_is_said_where_nothing_is_known(compare: Callable[..., Comparison]) -> None:
    assert ties(compare({"a": {"value": 1.0}, "b": {"value": 1.0}}).notes) == []


@pytest.mark.parametrize(("freedom", "t"), [(2, 4.303), (3, 3.182), (9, 2.262), (1000, 1.962)])
def test_student(freedom: int, t: float) -> None:
    assert t_quantile(freedom) == pytest.approx(t, rel=0.035)


def test_rows_from_elsewhere_need_no_setting(
    make_records: MakeRecords, save_run: SaveRun, tmp_path: Path
) -> None:
    other = [
        replace(r, row="reference", setting={}, setting_hash="none", factors={})
        for r in make_records("next_token")
    ]
    runs = [save_run(tmp_path / "a", make_records("nova")), save_run(tmp_path / "b", other)]
    found = Comparison.from_runs(runs)
    assert found.notes == ("Made elsewhere, under settings that arvid does not know: next_token",)
    assert found.setting_hashes == ("5e77ab120c9d",)
    assert "no setting" in Comparison.from_runs(runs[1:]).summary
