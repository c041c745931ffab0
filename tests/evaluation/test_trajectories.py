"""Several clips for each real clip: paired metrics take the best, distances all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arvid.contracts import Clip, UserError
from arvid.data.clips import ClipSpec
from arvid.data.sprites import Sprites
from arvid.evaluation.external import VideosRow
from arvid.evaluation.harness import evaluate
from arvid.evaluation.protocols import Protocol, get_protocol
from arvid.evaluation.records import ResultRecord
from arvid.evaluation.row_kinds import RealRow, Row

DATA = Sprites(8, seed=1)
DESCRIPTION: dict[str, Any] = {"setting": {}, "setting_hash": "abc"}
PROTOCOL = Protocol(
    name="best",
    summary="",
    task="prediction",
    metrics=("psnr", "fd-pixels"),
    num_clips=4,
    condition_frames=1,
    trajectories=3,
    batch_size=2,
)


class Noisy(Row):
    """Each real clip with noise whose strength depends on the batch: run r has 2 batches, weakest in run 1."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__("noisy", {})
        self.levels = levels

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> np.ndarray:
        videos = np.stack([clip.video for clip in clips]).astype(int)
        return (videos // 2 + self.levels[batch // 2]).astype(np.uint8)


def score(levels: tuple[int, ...], folder: Path, **changes: Any) -> ResultRecord:
    protocol = dataclasses.replace(PROTOCOL, trajectories=len(levels), **changes)
    row = Noisy(levels)
    return evaluate(row, protocol, DATA, folder, description=DESCRIPTION, progress=False)


def values(record: ResultRecord) -> dict[str, tuple[float, int]]:
    return {m.name: (m.value, m.count) for m in record.metrics}


def test_paired_metrics_take_the_best_and_distances_all(tmp_path: Path) -> None:
    alone = {n: values(score((n,), tmp_path / str(n))) for n in (20, 60, 100)}
    best = max(found["psnr"][0] for found in alone.values())
    together = values(score((20, 60, 100), tmp_path / "all"))
    assert together["psnr"] == (pytest.approx(best), 4)
    assert len({found["psnr"][0] for found in alone.values()}) == 3
    assert together["fd-pixels"][1] == 12
    again = values(score((100, 20, 60), tmp_path / "again"))
    assert again["psnr"][0] == pytest.approx(together["psnr"][0])
    assert again["fd-pixels"][0] == pytest.approx(together["fd-pixels"][0], rel=1e-4)


def test_the_best_is_chosen_for_each_clip(tmp_path: Path) -> None:
    record = score((20, 100), tmp_path)
    lines = (tmp_path / "evaluation/best/per-clip.csv").read_text().splitlines()
    assert len(lines) == 1 + 4
    assert record.protocol["trajectories"] == 2


def test_one_clip_each_has_the_hash_of_before() -> None:
    one = dataclasses.replace(PROTOCOL, trajectories=1)
    assert "trajectories" not in one.describe(DATA)
    assert one.describe(DATA)["hash"] != PROTOCOL.describe(DATA)["hash"]


def test_metrics_without_use_for_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"attributes cannot score"):
        score((20, 100), tmp_path, metrics=("psnr", "attributes"))
    with pytest.raises(UserError, match="reconstructions"):
        dataclasses.replace(PROTOCOL, task="reconstruction", condition_frames=0)


def test_real_clips_are_a_row_too_and_a_folder_of_videos_is_none(tmp_path: Path) -> None:
    protocol = dataclasses.replace(PROTOCOL, metrics=("fd-pixels",), num_clips=4)
    row = RealRow(DATA, protocol)
    record = evaluate(row, protocol, DATA, tmp_path, description=DESCRIPTION, progress=False)
    assert values(record)["fd-pixels"][1] == 12
    cut = dataclasses.replace(protocol, clip=ClipSpec(num_frames=17, size=32))
    with pytest.raises(UserError, match="trajectories: 1"):
        VideosRow(tmp_path, "theirs", protocol=cut, dataset=DATA)


def test_mcvds_protocols() -> None:
    for name, given, frames in (("ucf101", 4, 16), ("bair", 2, 30)):
        paired, distance = get_protocol(f"mcvd-{name}"), get_protocol(f"mcvd-{name}-fvd")
        for protocol in (paired, distance):
            assert protocol.clip is not None
            assert (protocol.condition_frames, protocol.clip.num_frames) == (given, frames)
            assert (protocol.num_clips, protocol.trajectories, protocol.clip.size) == (256, 100, 64)
        assert (paired.score_given, distance.score_given) == (False, True)
