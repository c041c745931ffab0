"""An evaluation goes on where it was interrupted, and any number of processes give its result."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from arvid.contracts import Clip, UserError
from arvid.data import loading
from arvid.data.sprites import Sprites
from arvid.data.video import VideoError
from arvid.evaluation import harness, records
from arvid.evaluation.code_identity import code_identity
from arvid.evaluation.harness import evaluate
from arvid.evaluation.parts import Parts
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.records import MetricValue, ResultRecord, load_run
from arvid.evaluation.row_kinds import Row, Videos

DATA = Sprites(30, num_frames=9, seed=1)
PROTOCOL = Protocol(
    name="p",
    summary="",
    task="generation",
    metrics=("fd-pixels", "psnr", "ssim", "attributes"),
    num_clips=10,
    folds=2,
    batch_size=3,
)
DESCRIPTION: dict[str, Any] = {"setting": {"seed": 0}, "setting_hash": "abc"}


@pytest.fixture(autouse=True)
def same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nobody edited the code meanwhile, which would be a reason to score anew."""
    monkeypatch.setattr(harness, "code_identity", lambda _: "this code")


class Noisy(Row):
    """The real clips with noise that is a function of the batch. Counts what it makes; may be killed."""

    def __init__(self, dies_at: int | None = None, name: str = "noisy") -> None:
        super().__init__(name, {})
        self.dies_at = dies_at
        self.made: list[int] = []

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        if len(self.made) == self.dies_at:
            raise KeyboardInterrupt
        self.made.append(batch)
        videos = np.stack([clip.video for clip in clips])
        return videos + np.random.default_rng(batch).integers(0, 9, videos.shape, np.uint8)


def score(row: Row, folder: Path, protocol: Protocol = PROTOCOL) -> ResultRecord:
    return evaluate(row, protocol, DATA, folder, description=DESCRIPTION, progress=False)


def numbers(record: ResultRecord) -> Any:
    """All of a record that must not depend on how the work was done."""
    curves = record.steps_curve, record.rollout
    return record.metrics, curves, record.clips, record.protocol, record.identity


def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    whole = score(Noisy(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        score(Noisy(dies_at=3), tmp_path / "killed")
    folder = tmp_path / "killed/evaluation"
    assert [p.name for p in folder.glob("p.parts-*/*")] != []
    rest = Noisy()
    record = score(rest, tmp_path / "killed")
    assert rest.made == [3, 4, 5, 6, 7]  # of 2 x 4 batches
    assert numbers(record) == numbers(whole)
    assert not list(folder.glob("p.parts-*"))
    folders = [tmp_path / run / "evaluation/p" for run in ("whole", "killed")]
    tables = [(f / "per-clip.csv").read_bytes() for f in folders]
    assert tables[0] == tables[1]
    assert [(f / "007.mp4").is_file() for f in folders] == [True, True]
    kept = [load_file(f / "measured-1.safetensors") for f in folders]
    assert kept[0].keys() == kept[1].keys()
    assert kept[0].keys() >= {"fd-pixels.real", "fd-pixels.generated", "psnr.frames"}
    for key, tensor in kept[0].items():
        torch.testing.assert_close(tensor, kept[1][key], rtol=0, atol=0)


def test_what_is_finished_is_not_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = score(Noisy(), tmp_path)
    again = Noisy()
    with caplog.at_level(logging.INFO):
        assert score(again, tmp_path) == first
    assert again.made == []
    assert "already scored" in caplog.text
    monkeypatch.setattr(harness, "code_identity", lambda _: "newer")
    score(again, tmp_path)
    assert len(again.made) == 8
    (tmp_path / "evaluation/p.json").write_text("damaged")
    score(again, tmp_path)
    assert len(again.made) == 16
    with pytest.raises(UserError, match="is the record of noisy: give other a folder of its own"):
        score(Noisy(name="other"), tmp_path)


def test_records_of_other_protocols_are_not_written_over(tmp_path: Path) -> None:
    protocols = [PROTOCOL, dataclasses.replace(PROTOCOL, seed=1)]
    protocols.append(dataclasses.replace(PROTOCOL, num_clips=4))
    for protocol in (*protocols, protocols[1]):
        score(Noisy(), tmp_path, protocol)
    found = load_run(tmp_path)
    assert len(found) == 3
    assert {r.protocol["num_clips"] for r in found} == {10, 4}
    clips = {record.clips[0].file for record in found}
    assert len(clips) == 3
    assert all((tmp_path / "evaluation" / clip).is_file() for clip in clips)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    parts = Parts(tmp_path, "p", "0123456789abcdef")
    parts.write("0-00000", {"fvd": {"real": torch.ones(2, 3)}}, 1.5)
    parts.write("0-00001", {"fvd": {"real": torch.zeros(1, 3)}}, 0.25)
    joined, seconds = parts.joined(["0-00000", "0-00001"])
    assert joined["fvd"]["real"].sum(1).tolist() == [3, 3, 0]
    assert seconds == 1.75
    path = next(tmp_path.rglob("0-00001*"))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="Delete it"):
        parts.joined(["0-00000", "0-00001"])


def test_a_damaged_part_is_measured_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = score(Noisy(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        score(Noisy(dies_at=3), tmp_path / "killed")
    path = next((tmp_path / "killed/evaluation").glob("p.parts-*/0-00001*"))
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    rest = Noisy()
    assert numbers(score(rest, tmp_path / "killed")) == numbers(whole)
    assert rest.made == [1, 3, 4, 5, 6, 7]
    assert f"{path} cannot be read (its checksum" in caplog.text


def test_a_record_edited_by_hand_is_no_finished_evaluation(tmp_path: Path) -> None:
    record = score(Noisy(), tmp_path)
    path = tmp_path / "evaluation/p.json"
    content = path.read_text()
    psnr = next(metric.value for metric in record.metrics if metric.name == "psnr")
    assert str(psnr) in content
    path.write_text(content.replace(str(psnr), "99.0"))
    with pytest.raises(UserError, match=r"p\.json: damaged or edited"):
        load_run(tmp_path)
    again = Noisy()
    assert numbers(score(again, tmp_path)) == numbers(record)
    assert len(again.made) == 8
    assert load_run(tmp_path)[0].metrics == record.metrics


def test_a_commit_alone_is_no_reason_to_score_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "code_identity", code_identity)
    first = score(Noisy(), tmp_path)
    monkeypatch.setattr(records, "_git", lambda *_: "another commit")
    again = Noisy()
    assert score(again, tmp_path) == first
    assert again.made == []


def _worker(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count
    )
    row = Noisy()
    if rank:  # the first process is not the last to be done
        time.sleep(0.1 * rank)
    record = score(row, Path(folder))
    assert len(row.made) == len(range(rank, 8, count))
    assert record.metrics
    torch.distributed.destroy_process_group()


def test_any_number_of_processes_gives_the_same_result(tmp_path: Path) -> None:
    expected = score(Noisy(), tmp_path / "1")
    for count in (2, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        mp.start_processes(_worker, args=(count, str(folder)), nprocs=count, start_method="fork")
        (record,) = load_run(folder)
        assert numbers(record) == numbers(expected)


class Broken(Sprites):
    """A dataset whose last clips cannot be read."""

    def __getitem__(self, index: int) -> Clip:
        if index > 20:
            raise VideoError("v.mp4", "it is broken")
        return super().__getitem__(index)


def test_workers_read_the_same_clips_and_hand_on_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = score(Noisy(), tmp_path / "0")
    monkeypatch.setattr(loading, "FEW_BATCHES", 0)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert numbers(score(Noisy(), tmp_path / "2")) == numbers(expected)
    with pytest.raises(VideoError, match=r"v\.mp4 cannot be read"):
        evaluate(Noisy(), PROTOCOL, Broken(30), tmp_path, description=DESCRIPTION, progress=False)


def test_a_record_holds_what_each_clip_scored(tmp_path: Path) -> None:
    record = score(Noisy(), tmp_path)
    assert record.per_clip == "p/per-clip.csv"
    lines = record.path(record.per_clip).read_text().splitlines()
    assert lines[0] == "fold,clip,psnr,ssim"
    assert len(lines) == 21
    by_name: dict[str, MetricValue] = {metric.name: metric for metric in record.metrics}
    mean = sum(float(line.split(",")[2]) for line in lines[1:]) / 20
    assert by_name["psnr"].value == pytest.approx(mean)
    assert by_name["fd-pixels"].folds[0] != by_name["fd-pixels"].folds[1]
