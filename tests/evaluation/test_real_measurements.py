"""Real clips are measured once for all rows of a protocol, and numbers do not change by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from arvid.contracts import Clip
from arvid.data.sprites import Sprites
from arvid.evaluation import harness
from arvid.evaluation.harness import evaluate
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.records import ResultRecord, load_run
from arvid.evaluation.row_kinds import FirstFrameRow, Row, Videos
from arvid.evaluation.scores import distances
from arvid.metrics.frechet import FeatureNetwork

PROTOCOL = Protocol(
    name="p",
    summary="",
    task="generation",
    metrics=("fd-sprites", "fd-pixels", "psnr"),
    num_clips=10,
    batch_size=4,
)
OF_A_SET = dataclasses.replace(PROTOCOL, metrics=("fd-sprites",), num_clips=4, num_real=10)
"""Compares with real clips whose conditions nobody asks for."""


class Cells(FeatureNetwork):
    """Mean colours of a few cells, times a weight. Keeps the number of clips of each call."""

    name = "cells"
    num_features = 12
    asked: ClassVar[list[int]] = []

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))

    def forward(self, videos: Tensor) -> Tensor:
        self.asked.append(len(videos))
        cells = F.adaptive_avg_pool3d(videos.permute(0, 4, 1, 2, 3).float(), (1, 2, 2))
        return cells.flatten(1) * self.get_buffer("weight")


class Reads(Sprites):
    """Counts the clips that are read."""

    _read = 0

    def __getitem__(self, index: int) -> Clip:
        self._read += 1
        return super().__getitem__(index)


class Noisy(Row):
    """The real clips with noise that is a function of the batch."""

    def __init__(self) -> None:
        super().__init__("noisy", {})

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        videos = np.stack([clip.video for clip in clips])
        return videos + np.random.default_rng(batch).integers(0, 9, videos.shape, np.uint8)


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Cells in the place of SpritesNet, an empty cache, and code that nobody edits meanwhile."""
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(harness, "code_identity", lambda _: "this code")
    use(monkeypatch, 1.0)
    yield
    distances._shared.cache_clear()


def use(monkeypatch: pytest.MonkeyPatch, weight: float) -> None:
    """Weights for the network, which has not been asked yet."""
    monkeypatch.setattr(distances.FdSprites, "build", lambda: Cells(weight))
    distances._shared.cache_clear()
    Cells.asked.clear()


def score(row: Row, folder: Path, protocol: Protocol = PROTOCOL, **data: Any) -> ResultRecord:
    dataset = Reads(24, num_frames=9, **{"seed": 1, **data})
    found = evaluate(
        row,
        protocol,
        dataset,
        folder,
        description={"setting": {}, "setting_hash": "a"},
        progress=False,
    )
    folder.joinpath("reads").write_text(str(dataset._read))
    return found


def files(folder: Path) -> list[Path]:
    return sorted((folder / "cache/real").rglob("*.safetensors"))


def test_the_network_looks_at_real_clips_once_for_all_rows(tmp_path: Path) -> None:
    first = score(Noisy(), tmp_path / "a")
    assert Cells.asked == [4, 4, 4, 4, 2, 2]  # generated and real clips of three batches
    assert len(files(tmp_path)) == 6  # of fd-sprites and of fd-pixels
    score(FirstFrameRow(), tmp_path / "b")
    assert len(Cells.asked) == 9
    assert len(files(tmp_path)) == 6
    again = score(Noisy(), tmp_path / "c")
    assert len(Cells.asked) == 12
    assert again.metrics == first.metrics
    kept = [load_file(tmp_path / f"{run}/evaluation/p/measured-0.safetensors") for run in "abc"]
    for other in kept[1:]:
        for name in ("fd-sprites.real", "fd-pixels.real"):
            torch.testing.assert_close(other[name], kept[0][name], rtol=0, atol=0)


def test_a_set_of_its_own_is_not_even_read_again(tmp_path: Path) -> None:
    first = score(Noisy(), tmp_path / "a", OF_A_SET)
    asked = len(Cells.asked)
    again = score(Noisy(), tmp_path / "b", OF_A_SET)
    assert again.metrics == first.metrics
    assert len(Cells.asked) - asked == 1  # the generated clips
    reads = [int((tmp_path / run / "reads").read_text()) for run in "ab"]
    assert reads[0] - reads[1] == 10


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"seed": 2}},
        {"protocol": {"seed": 3}},
        {"protocol": {"scored_frames": 5}},
        {"protocol": {"batch_size": 3}},
        {"weight": 2.0},
        {"code": "other code"},
    ],
)
def test_what_numbers_depend_on_names_other_files(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = dataclasses.replace(PROTOCOL, metrics=("fd-sprites",))
    score(Noisy(), tmp_path / "a", protocol)
    before = files(tmp_path)
    use(monkeypatch, change.get("weight", 1.0))
    if "code" in change:
        monkeypatch.setattr(harness, "code_identity", lambda _: change["code"])
    changed = dataclasses.replace(protocol, **change.get("protocol", {}))
    found = score(FirstFrameRow(), tmp_path / "b", changed, **change.get("data", {}))
    assert sum(Cells.asked) == 20  # generated and real ones
    assert len(files(tmp_path)) > len(before)
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "empty"))
    alone = score(FirstFrameRow(), tmp_path / "c", changed, **change.get("data", {}))
    assert alone.metrics == found.metrics


def test_other_clip_counts_and_metrics_share_batches(tmp_path: Path) -> None:
    score(Noisy(), tmp_path / "a", dataclasses.replace(PROTOCOL, metrics=("fd-sprites",)))
    asked = len(Cells.asked)
    fewer = dataclasses.replace(PROTOCOL, name="q", num_clips=8)
    score(Noisy(), tmp_path / "b", fewer)
    assert Cells.asked[asked:] == [4, 4]  # generated ones alone


@pytest.mark.parametrize("damage", ["cut short", "another value", "without a checksum"])
def test_a_damaged_file_is_measured_anew_with_a_warning(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    protocol = dataclasses.replace(PROTOCOL, metrics=("fd-sprites",))
    first = score(Noisy(), tmp_path / "a", protocol)
    path = files(tmp_path)[0]
    whole = path.read_bytes()
    if damage == "cut short":
        path.write_bytes(whole[:-5])
    elif damage == "another value":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        save_file(load_file(path), path, {})
    again = score(Noisy(), tmp_path / "b", protocol)
    assert f"{path} is damaged" in caplog.text
    assert again.metrics == first.metrics
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = score(Noisy(), tmp_path / "a")
    (tmp_path / "file").touch()
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "file"))
    assert score(Noisy(), tmp_path / "b").metrics == expected.metrics
    assert caplog.text.count("Set ARVID_CACHE") == 1


def _worker(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count
    )
    Cells.asked.clear()
    score(Noisy(), Path(folder))
    Path(folder, f"asked-{rank}").write_text(str(sum(Cells.asked)))
    torch.distributed.destroy_process_group()


def test_processes_share_what_is_kept(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        mp.start_processes(_worker, args=(2, str(folder)), nprocs=2, start_method="fork")
    asked = [sum(int(f.read_text()) for f in folder.glob("asked-*")) for folder in folders]
    assert asked == [20, 10]
    records = [load_run(folder)[0] for folder in folders]
    assert records[0].metrics == records[1].metrics
    assert score(Noisy(), tmp_path / "alone").metrics == records[0].metrics
