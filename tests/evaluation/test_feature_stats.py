"""Statistics files of StyleGAN-V's and cd-fvd's code: their distances, and files that are refused."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from arvid.cli import main
from arvid.contracts import UserError
from arvid.data.clips import ClipSpec
from arvid.data.sprites import Sprites
from arvid.data.video import write_video
from arvid.evaluation.external import NO_SETTING, VideosRow
from arvid.evaluation.feature_stats import read_feature_stats
from arvid.evaluation.harness import evaluate
from arvid.evaluation.making_statistics import statistics_of
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.real_clips import real_set
from arvid.evaluation.real_statistics import RealStatistics
from arvid.evaluation.records import MetricValue
from arvid.evaluation.scores.distances import Distance, FdPixels
from arvid.metrics.pixel_features import PixelFeatures

NUM = 6
PROTOCOL = Protocol(
    name="p",
    summary="",
    task="generation",
    metrics=("fd-pixels",),
    num_clips=NUM,
    clip=ClipSpec(num_frames=9, size=32),
    ddof=0,
)
Stats = dict[str, Any]


def features(seed: int, num: int = NUM) -> np.ndarray:
    clips = Sprites(num, num_frames=9, size=32, seed=seed)
    videos = torch.from_numpy(np.stack([clip.video for clip in clips]))
    return PixelFeatures()(videos).numpy()


def feature_stats(rows: np.ndarray, capture_all: bool = False) -> Stats:
    """The attributes of a `FeatureStats` object with these features."""
    x = rows.astype(np.float64)
    return {
        "capture_all": capture_all,
        "capture_mean_cov": True,
        "max_items": None,
        "num_items": len(x),
        "num_features": x.shape[1],
        "all_features": [rows[:2], rows[2:]] if capture_all else [],
        "raw_mean": x.sum(axis=0),
        "raw_cov": x.T @ x,
    }


def published_distance(a: Stats, b: Stats) -> float:
    """The formula of both programs."""
    means = [stats["raw_mean"] / stats["num_items"] for stats in (a, b)]
    covariances = [
        stats["raw_cov"] / stats["num_items"] - np.outer(mean, mean)
        for stats, mean in zip((a, b), means, strict=True)
    ]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    apart = np.square(means[0] - means[1]).sum()
    return float(np.real(apart + np.trace(covariances[0] + covariances[1] - root * 2)))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    def run(content: Any) -> Path:
        path = tmp_path / "real.pkl"
        path.write_bytes(pickle.dumps(content))
        return path

    return run


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """Videos without loss, so their features are those of `features(7)`."""
    for i, clip in enumerate(Sprites(NUM, num_frames=9, size=32, seed=7)):
        write_video(tmp_path / "generated" / f"{i}.mp4", clip.video, 8, crf=0)
    return tmp_path / "generated"


def score(
    file: Path, protocol: Protocol, videos: Path, out: Path
) -> tuple[MetricValue, np.ndarray]:
    """The value with the statistics in a published file, and the features of the generated videos."""
    dataset = real_set(protocol, statistics_of(file, protocol, out))
    row = VideosRow(videos, "theirs", protocol=protocol, dataset=dataset)
    record = evaluate(row, protocol, dataset, out, description=NO_SETTING, progress=False)
    clips = row.generate([dataset[i] for i in range(NUM)], protocol, 0)
    return record.metrics[0], PixelFeatures()(torch.from_numpy(clips)).numpy()


@pytest.mark.parametrize("capture_all", [True, False], ids=["features", "moments"])
def test_distances_of_the_published_formula(
    capture_all: bool, write: Callable[[Any], Path], generated: Path, tmp_path: Path
) -> None:
    real = feature_stats(features(0), capture_all)
    value, theirs = score(write(real), PROTOCOL, generated, tmp_path / "out")
    assert value.value == pytest.approx(published_distance(real, feature_stats(theirs)), rel=1e-5)
    assert value.value > 1e-3
    assert (value.spread is None) != capture_all
    assert (value.interval is None) != capture_all


@pytest.mark.parametrize("num", [5, 40])
def test_rows_have_the_moments_of_the_file(num: int, write: Callable[[Any], Path]) -> None:
    """With fewer clips than features, and with more."""
    rows = np.random.default_rng(0).normal(3, 2, (num, 12)).astype(np.float32)
    stats = read_feature_stats(write(feature_stats(rows)))
    assert stats.only_moments
    assert stats.rows.shape == (num, 12)
    x = torch.from_numpy(rows).double()
    torch.testing.assert_close(stats.rows.mean(0), x.mean(0))
    for ddof in (0, 1):
        torch.testing.assert_close(
            torch.cov(stats.rows.T, correction=ddof), torch.cov(x.T, correction=ddof)
        )
    whole = read_feature_stats(write(feature_stats(rows, capture_all=True)))
    assert torch.equal(whole.rows, x)


def test_metrics_that_need_features_refuse_moments(
    write: Callable[[Any], Path], tmp_path: Path
) -> None:
    class Kernel(Distance):
        name, label, build = "kernel", "Kernel", PixelFeatures

        def distance(self, real: torch.Tensor, generated: torch.Tensor) -> float:
            return 0.0

    for capture_all, lacks in ((False, True), (True, False)):
        file = write(feature_stats(features(0), capture_all))
        statistics = RealStatistics(statistics_of(file, PROTOCOL, tmp_path / "s"), PROTOCOL)
        found = statistics.lacks(Kernel.for_protocol(PROTOCOL))
        assert (found is not None and "has mean and covariance only" in found) == lacks
        assert statistics.lacks(FdPixels.for_protocol(PROTOCOL)) is None


def test_clips_of_a_protocol_and_of_a_file_must_agree(
    write: Callable[[Any], Path], tmp_path: Path
) -> None:
    file = write(feature_stats(features(0, 9)))
    with pytest.raises(UserError, match="has 9 real clips, but protocol p compares with 6 of them"):
        statistics_of(file, PROTOCOL, tmp_path / "s")
    of_a_set = dataclasses.replace(PROTOCOL, num_real=9, folds=2)
    assert len(RealStatistics(statistics_of(file, of_a_set, tmp_path / "s"), of_a_set)) == 9
    of_folds = dataclasses.replace(PROTOCOL, num_clips=3, folds=2)
    rows = write(feature_stats(features(0), capture_all=True))
    assert len(RealStatistics(statistics_of(rows, of_folds, tmp_path / "s"), of_folds)) == 6
    with pytest.raises(UserError, match="compares each of its 2 folds with other real clips"):
        statistics_of(write(feature_stats(features(0))), of_folds, tmp_path / "s")
    narrow = write(feature_stats(features(0)[:, :5]))
    with pytest.raises(UserError, match="has 5 features per clip, but the network has"):
        statistics_of(narrow, PROTOCOL, tmp_path / "s")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"raw_cov": np.zeros((3, 4))}, "raw_cov"),
        ({"raw_mean": None}, "not statistics"),
        ({"num_items": 0}, "num_items is 0"),
        ({"num_items": 10**12}, "num_items is"),
        ({"num_items": "many"}, "not statistics"),
        ({"num_items": float("inf")}, "not statistics"),
        ({"capture_mean_cov": False}, "neither features nor moments"),
        ({"capture_all": True, "all_features": []}, "not statistics"),
        ({"capture_all": True, "all_features": [np.zeros((2, 3))]}, "all_features is"),
        ({"raw_mean": np.full(4, np.nan), "raw_cov": np.eye(4)}, "not "),
    ],
)
def test_files_with_other_content(
    changes: Stats, reason: str, write: Callable[[Any], Path]
) -> None:
    with pytest.raises(UserError, match=f"real.pkl: .*{reason}"):
        read_feature_stats(write({**feature_stats(features(0)), **changes}))


class Hostile:
    """Unpickling it naively would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.folder),))


def test_code_in_a_file_is_not_run(
    write: Callable[[Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.yaml").write_text(
        "summary: s\ntask: generation\nmetrics: [fd-pixels]\nclip: {num_frames: 9, size: 32}\n"
    )
    made = tmp_path / "made"
    file = write({**feature_stats(features(0)), "max_items": Hostile(made)})
    command = ["stats", "make", "--protocol", f"{tmp_path}/p.yaml", "--real", str(file)]
    command += ["--out", str(tmp_path / "s")]
    assert main([*command, "--real-list", "list.txt"]) == 2
    assert "leave --real-list out" in capsys.readouterr().err
    assert main(command) == 2
    assert "mkdir, which is not run" in capsys.readouterr().err
    assert not made.exists()
    for content in (b"", b"no pickle", pickle.dumps([1, 2])):
        file.write_bytes(content)
        with pytest.raises(UserError, match="not a pickle of numpy arrays that can be read safely"):
            read_feature_stats(file)


def test_lists_of_lists_are_not_spread_out(write: Callable[[Any], Path]) -> None:
    """A pickle of a hundred bytes can have 2^100 items."""
    items: list[Any] = []
    for _ in range(100):
        items = [items, items]
    assert read_feature_stats(write({**feature_stats(features(0)), "max_items": items}))


def test_damaged_files_are_refused_and_crash_nothing(tmp_path: Path) -> None:
    """numpy's own unpickling crashes on some of these."""
    file = tmp_path / "real.pkl"
    whole = pickle.dumps(feature_stats(features(0)[:, :3]))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(len(content), size=3):
            content[place] = rng.integers(256)
        file.write_bytes(content)
        try:
            read_feature_stats(file)
        except UserError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_kind_of_pickle(protocol: int, tmp_path: Path) -> None:
    rows = features(0)[:, :5]
    stats = feature_stats(rows, capture_all=True)
    stats["num_items"] = np.int64(NUM)
    stats["all_features"] = [np.asfortranarray(rows[:2]), rows[2:].astype(">f8")]
    (tmp_path / "real.pkl").write_bytes(pickle.dumps(stats, protocol=protocol))
    found = read_feature_stats(tmp_path / "real.pkl").rows
    assert torch.equal(found, torch.from_numpy(rows).double())
