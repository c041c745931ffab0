"""Metrics that compare with the training set, and optional metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.evaluation import training_clips
from arvid.evaluation.harness import evaluate
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.records import ResultRecord
from arvid.evaluation.row_kinds import RealRow, Row
from arvid.evaluation.scores import distances
from arvid.evaluation.training_clips import chosen_clips
from arvid.metrics.frechet import FeatureNetwork
from arvid.metrics.ridge import RidgeClassifier
from arvid.report.comparison import Comparison
from arvid.report.page import write_report

PROTOCOL = Protocol(
    name="p",
    summary="",
    task="generation",
    metrics=("class-accuracy", "nearest-training"),
    num_clips=6,
    too_few="half",
    batch_size=4,
)


class Colours(VideoDataset):
    """Dark (class 0) and bright (class 1) clips of one colour each."""

    classes = ("dark", "bright")

    def __init__(self, size: int, seed: int) -> None:
        self.levels = np.random.default_rng(seed).integers(0, 100, (size, 3))
        self.seed = seed

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, index: int) -> Clip:
        label = index % 2
        video = np.full((4, 16, 16, 3), self.levels[index] + 150 * label, np.uint8)
        return Clip(video=video, name=f"{self.seed}-{index}", label=label)

    def fingerprint(self) -> str:
        return f"{self.seed:064}"


class MeanColour(FeatureNetwork):
    """The mean colour of a clip."""

    name, num_features = "mean-colour", 3

    def forward(self, videos: torch.Tensor) -> torch.Tensor:
        return videos.float().mean((1, 2, 3))


class Shows(Row):
    """Training clips (`copies`), or the class that was not asked for."""

    def __init__(self, copies: VideoDataset | None = None) -> None:
        super().__init__("copies" if copies else "wrong", {})
        self.kind = "trained"
        self.copies = copies

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> NDArray[np.uint8]:
        if self.copies:
            return np.stack([self.copies[clip.label or 0].video for clip in clips])
        bright = np.array([clip.label == 1 for clip in clips])[:, None, None, None, None]
        videos = np.stack([clip.video for clip in clips])
        return np.where(bright, videos - 150, videos + 150)  # uint8


@pytest.fixture(autouse=True)
def _cheap_features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(distances.FdEfficientNet, "build", MeanColour)
    distances._shared.cache_clear()
    yield
    distances._shared.cache_clear()


REAL, TRAINING = Colours(12, 1), Colours(20, 2)


def score(
    row: Row,
    folder: Path,
    protocol: Protocol = PROTOCOL,
    training: VideoDataset | None = TRAINING,
    real: VideoDataset = REAL,
) -> ResultRecord:
    description = {"setting": {"seed": 0}, "setting_hash": "a"}
    return evaluate(
        row, protocol, real, folder, description=description, training=training, progress=False
    )


def values(record: ResultRecord) -> dict[str, float]:
    return {metric.name: metric.value for metric in record.metrics}


def test_real_clips_show_their_class_and_are_as_new_as_real_clips(tmp_path: Path) -> None:
    found = values(score(RealRow(REAL, PROTOCOL), tmp_path))
    assert found["class-accuracy"] == 100
    assert 0.3 < found["nearest-training"] < 3


def test_clips_of_another_class_are_told(tmp_path: Path) -> None:
    assert values(score(Shows(), tmp_path))["class-accuracy"] == 0


def test_copies_are_found_and_shown_on_the_page(tmp_path: Path) -> None:
    record = score(Shows(TRAINING), tmp_path / "copies")
    assert values(record)["nearest-training"] == 0
    assert len(record.clips) == 6
    for clip in record.clips:
        assert clip.nearest_training is not None
        copied, shown = record.path(clip.nearest_training), record.path(clip.file)
        assert copied.read_bytes() == shown.read_bytes()
    comparison = write_report([tmp_path / "copies"], tmp_path / "page", title="t")
    page = (tmp_path / "page/index.html").read_text()
    assert page.count("nearest training clip") == 6
    column = next(c for c in comparison.columns if "nearest-training" in c.key)
    assert (column.arrow, "compare with real clips" in column.detail) == ("", True)


def test_training_clips_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = score(Shows(), tmp_path / "a")
    monkeypatch.setattr(training_clips, "load_batches", lambda data, batches: iter(batches))
    again = score(Shows(), tmp_path / "b")  # would fail if it decoded a training clip
    assert again.metrics == first.metrics


def test_other_training_clips_are_another_evaluation(tmp_path: Path) -> None:
    found = [score(Shows(), tmp_path, training=Colours(20, seed)) for seed in (2, 3, 2)]
    assert found[0].identity == found[2].identity != found[1].identity


def test_what_is_missing_is_an_error_or_a_note(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="cannot measure class-accuracy: the frames of the training"
    ):
        score(Shows(), tmp_path, training=None)
    optional = dataclasses.replace(
        PROTOCOL, metrics=("flicker",), optional_metrics=("fvd", *PROTOCOL.metrics)
    )
    optional = dataclasses.replace(optional, preprocessing="tats")
    record = score(Shows(), tmp_path / "none", optional, training=None)
    assert [note.split(":")[0] for note in record.notes] == [
        "No fvd",
        "No class-accuracy",
        "No nearest-training",
    ]
    assert values(record).keys() == {"flicker"}
    notes = Comparison.from_runs([tmp_path / "none"]).notes
    assert any(note.startswith("p: No fvd: FVD in the protocol of TATS") for note in notes)
    both = score(Shows(), tmp_path / "none", optional)  # now the training set is there
    assert values(both).keys() == {"flicker", *PROTOCOL.metrics}
    assert both.protocol_hash == record.protocol_hash
    assert both.identity != record.identity


def test_clips_without_classes_and_large_training_sets_are_named(tmp_path: Path) -> None:
    plain = Colours(12, 1)
    plain.classes = ()
    with pytest.raises(UserError, match="class-accuracy: the clips have no classes"):
        score(Shows(), tmp_path, real=plain)
    copying = dataclasses.replace(PROTOCOL, metrics=("nearest-training",))
    with pytest.raises(UserError, match="up to 1024 training clips, but there are 1025"):
        score(Shows(), tmp_path, copying, training=Colours(1025, 2))


def test_of_a_large_training_set_some_clips_are_measured() -> None:
    assert chosen_clips(5) == [0, 1, 2, 3, 4]
    chosen = chosen_clips(5000)
    assert len(set(chosen)) == 1024
    assert chosen == sorted(chosen) == chosen_clips(5000)
    assert chosen[-1] > 4900


def test_the_ridge_classifier_separates_noisy_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    centres = 3 * torch.randn(3, 100, generator=generator)
    features = centres[labels] + torch.randn(60, 100, generator=generator)
    features[:, 0] = 5.0  # a constant feature does no harm
    classify = RidgeClassifier(features, labels)
    unseen = centres[labels] + torch.randn(60, 100, generator=generator)
    unseen[:, 0] = 5.0
    assert (classify(unseen) == labels).all()
