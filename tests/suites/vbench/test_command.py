"""The command from sampling to the record."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from arvid.commands import vbench as command
from arvid.contracts import UserError
from arvid.evaluation import records
from arvid.suites.vbench import results
from arvid.suites.vbench.aggregate import DIMENSIONS
from arvid.suites.vbench.results import DimensionResult


def vbench(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def row(tmp_path: Path) -> Path:
    return tmp_path / "row"


def store(row: Path, name: str, score: float) -> None:
    unit = 100 if name == "imaging_quality" else 1
    videos = tuple(
        {"video_path": f"v/{prompt}-{i}.mp4", "video_results": unit * value}
        for prompt, value in (("a", score - 0.1), ("b", score + 0.1))
        for i in range(2)
    )
    made_with = {"networks": {"net": "ab" * 32}, "options": {}}
    result = DimensionResult(dimension=name, score=score, videos=videos, made_with=made_with)
    results.save(result, row / "vbench" / "scores")


def test_sample_score_and_aggregate(
    trained_run: Path,
    row: Path,
    suite_file: Path,
    clip_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sample = ("sample", row, "--suite", suite_file, "--checkpoint", trained_run, "--frames", 5)
    chosen = ("--dimension", "temporal_flickering", "--dimension", "background_consistency")
    for shard in ("0/2", "1/2"):
        vbench(*sample, *chosen, "--flickering-samples", 6, "--shard", shard)
    drawn = sorted(path.name for path in (row / "vbench" / "videos").iterdir())
    assert drawn == [
        *(f"a still cup-{i}.mp4" for i in range(6)),
        *(f"alley-{i}.mp4" for i in range(5)),
    ]
    with pytest.raises(UserError, match=r"other samples \(seed differ"):
        vbench(*sample, "--seed", 1)
    score = ("score", row, "--suite", suite_file, *chosen, "--clip-b32", clip_folder)
    vbench(*score, "--no-static-filter")
    capsys.readouterr()
    assert vbench("aggregate", row) == 0
    said = capsys.readouterr().out
    assert "motion_smoothness" in said
    assert said.count("missing: counts as raw 0") == 14
    record = records.load(row / "evaluation" / "vbench.json")
    assert record.row == "trained"
    assert record.name == trained_run.name
    assert record.setting
    assert record.checkpoint_sha256
    assert record.protocol["prompts"] == "short"
    by_name = {metric.name: metric for metric in record.metrics}
    assert by_name["vbench-background-consistency"].count == 5
    assert by_name["vbench-background-consistency"].feature_network == str(clip_folder)
    assert by_name["vbench-temporal-flickering"].feature_network is None
    options = record.protocol["dimensions"]["temporal_flickering"]["options"]
    assert options == {"static_filter": False, "flickering_samples": 5}
    assert by_name["vbench-total-incomplete"].label == "VBench total (incomplete: 14 missing)"


def test_a_complete_row_has_totals_with_that_name(row: Path) -> None:
    for name in DIMENSIONS:
        store(row, name, 0.5)
    vbench("aggregate", row)
    record = records.load(row / "evaluation" / "vbench.json")
    assert (record.row, record.name) == ("reference", "row")
    by_name = {metric.name: metric for metric in record.metrics}
    assert len(by_name) == 19
    assert by_name["vbench-total"].label == "VBench total"
    assert by_name["vbench-scene"].value == 50
    for name in ("scene", "imaging-quality"):  # over two prompts of 40 and 60
        assert by_name[f"vbench-{name}"].spread == pytest.approx(10)
    before = record.protocol_hash
    (row / "vbench" / "scores" / "scene_eval_results.json").unlink()
    vbench("aggregate", row)
    lacking = records.load(row / "evaluation" / "vbench.json")
    assert lacking.protocol_hash != before
    names = {metric.name for metric in lacking.metrics}
    assert {"vbench-quality", "vbench-semantic-incomplete", "vbench-total-incomplete"} <= names


def test_dimensions_of_the_package_ask_for_its_python(row: Path, suite_file: Path) -> None:
    with pytest.raises(UserError, match=r"scene: measured by VBench's package.*--vbench-python"):
        vbench("score", row, "--suite", suite_file, "--dimension", "scene")


def test_missing_weights_stop_before_anything_is_scored(
    row: Path, suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVID_WEIGHTS", str(tmp_path / "none"))
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(5):
        (videos / f"a red square-{i}.mp4").write_bytes(b"")
    arguments = ("score", row, "--suite", suite_file, "--videos", videos)
    with pytest.raises(UserError, match=r"raft-things.pth, which is missing"):
        vbench(*arguments, "--dimension", "dynamic_degree")
    assert not row.exists()


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        vbench("--help")
    assert "arvid evaluate vbench sample runs/nova" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        vbench("score", "--help")
    assert "--vbench-python" in capsys.readouterr().out
