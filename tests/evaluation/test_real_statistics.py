"""Statistics files give the same values as the real videos. Where frames are needed, they are refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arvid.cli import main
from arvid.contracts import Clip, UserError
from arvid.data.clips import ClipSpec
from arvid.data.keyboard_sprites import KeyboardSprites
from arvid.data.sprites import Sprites
from arvid.data.video import write_video
from arvid.evaluation.external import NO_SETTING
from arvid.evaluation.harness import evaluate
from arvid.evaluation.making_statistics import make_statistics
from arvid.evaluation.protocols import Protocol, read_protocol
from arvid.evaluation.real_clips import real_clips, real_set
from arvid.evaluation.real_measurements import RealMeasurements
from arvid.evaluation.real_statistics import RealStatistics
from arvid.evaluation.records import ResultRecord, load_run
from arvid.evaluation.row_kinds import Row, Videos
from arvid.evaluation.rows import evaluate_references, evaluate_run
from arvid.evaluation.scores import lacking
from arvid.evaluation.scores.distances import FdPixels
from arvid.evaluation.scores.training import NearestTraining
from arvid.tensor_files import load_tensors, save_tensors

PROTOCOL = Protocol(
    name="p", summary="", task="generation", metrics=("fd-pixels",), num_clips=5, batch_size=2
)
OF_A_SET = dataclasses.replace(PROTOCOL, num_clips=3, num_real=8, folds=2)
"""With a separate real set, and clips that give captions alone."""
REPEATED = dataclasses.replace(PROTOCOL, num_clips=15, too_few="repeat", scored_frames=6)


class Noise(Row):
    """Clips of noise. Records for which real clips they were requested."""

    def __init__(self) -> None:
        super().__init__("noise", {})
        self.asked: list[tuple[str, str, int | None]] = []

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        self.asked += [(clip.caption, clip.name, clip.label) for clip in clips]
        shape = (len(clips), *clips[0].video.shape)
        return np.random.default_rng(batch).integers(0, 256, shape, np.uint8)


@pytest.fixture
def sprites() -> Sprites:
    return Sprites(10, num_frames=9, size=32)


def score(protocol: Protocol, dataset: Any, out: Path) -> tuple[ResultRecord, Noise]:
    row = Noise()
    record = evaluate(row, protocol, dataset, out, description=NO_SETTING, progress=False)
    return record, row


@pytest.mark.parametrize("protocol", [PROTOCOL, OF_A_SET, REPEATED], ids=["pairs", "set", "cycle"])
def test_values_are_those_of_the_videos(
    protocol: Protocol, sprites: Sprites, tmp_path: Path
) -> None:
    path = make_statistics(protocol, sprites, tmp_path / "statistics", progress=False)
    statistics = RealStatistics(path, protocol)
    ours, row = score(protocol, statistics, tmp_path / "a")
    theirs, expected = score(protocol, sprites, tmp_path / "b")
    assert ours.metrics == theirs.metrics
    assert ours.metrics[0].value > 0
    assert ours.protocol == theirs.protocol
    assert ours.protocol_hash == theirs.protocol_hash
    assert row.asked == expected.asked


def test_the_name_is_a_hash_of_the_content(sprites: Sprites, tmp_path: Path) -> None:
    paths = [make_statistics(PROTOCOL, sprites, tmp_path / x, progress=False) for x in ("a", "b")]
    assert paths[0].name == paths[1].name
    assert paths[0].read_bytes() == paths[1].read_bytes()
    others = Sprites(10, num_frames=9, size=32, seed=1)
    assert make_statistics(PROTOCOL, others, tmp_path, progress=False).name != paths[0].name


def test_other_metrics_over_the_same_features(sprites: Sprites, tmp_path: Path) -> None:
    path = make_statistics(PROTOCOL, sprites, tmp_path, progress=False)
    two = dataclasses.replace(PROTOCOL, metrics=("fd-pixels", "fd-sprites"))
    both = make_statistics(two, sprites, tmp_path, progress=False)
    assert score(PROTOCOL, RealStatistics(both, PROTOCOL), tmp_path / "a")[0].metrics
    with pytest.raises(
        UserError, match=rf"cannot measure fd-sprites: {path.name} has no features of .*, but of"
    ):
        score(two, RealStatistics(path, two), tmp_path / "b")
    paired = dataclasses.replace(PROTOCOL, metrics=("fd-pixels", "psnr"))
    with pytest.raises(UserError, match="cannot measure psnr: it needs the frames of real clips"):
        score(paired, RealStatistics(path, paired), tmp_path / "b")
    optional = dataclasses.replace(PROTOCOL, optional_metrics=("fd-sprites",))
    record, _ = score(optional, RealStatistics(path, optional), tmp_path / "c")
    assert [metric.name for metric in record.metrics] == ["fd-pixels"]
    assert any(note.startswith("No fd-sprites: ") for note in record.notes)


def test_metrics_that_compare_with_a_training_set_are_refused(
    sprites: Sprites, tmp_path: Path
) -> None:
    """They use the features of real clips, which the file has, and clips of a training, which is not known."""

    class Nearest(NearestTraining):
        @classmethod
        def for_protocol(cls, protocol: Protocol) -> Nearest:
            return cls(FdPixels.for_protocol(protocol).features)

    statistics = RealStatistics(
        make_statistics(PROTOCOL, sprites, tmp_path, progress=False), PROTOCOL
    )
    score = Nearest.for_protocol(PROTOCOL)
    assert statistics.lacks(score) is None
    assert "training clips are not known" in (lacking(score, statistics, None) or "")
    assert lacking(score, statistics, sprites) is None
    assert lacking(FdPixels.for_protocol(PROTOCOL), statistics, None) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_clips": 4}, "num_clips: 5 there, 4 here"),
        ({"seed": 3}, "seed: 0 there, 3 here"),
        ({"scored_frames": 4}, "scored_frames: None there, 4 here"),
        ({"clip": ClipSpec(num_frames=9, size=32)}, "clip: None there"),
        ({"task": "reconstruction"}, "is a reconstruction, which needs the frames"),
        ({"task": "prediction", "condition_frames": 1}, "is a prediction, which needs the frames"),
    ],
)
def test_other_protocols_are_refused(
    changes: dict[str, Any], reason: str, sprites: Sprites, tmp_path: Path
) -> None:
    path = make_statistics(PROTOCOL, sprites, tmp_path, progress=False)
    with pytest.raises(UserError, match=reason):
        RealStatistics(path, dataclasses.replace(PROTOCOL, **changes))


def test_what_cannot_be_kept(
    sprites: Sprites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paired = dataclasses.replace(PROTOCOL, metrics=("psnr",))
    with pytest.raises(UserError, match="has no metric between sets"):
        make_statistics(paired, sprites, tmp_path, progress=False)
    predicted = dataclasses.replace(PROTOCOL, task="prediction", condition_frames=1)
    with pytest.raises(UserError, match="is a prediction"):
        make_statistics(predicted, sprites, tmp_path, progress=False)
    acting = dataclasses.replace(
        PROTOCOL, clip=ClipSpec(num_frames=9, size=32), conditions=("actions",)
    )
    with pytest.raises(UserError, match="gives a model actions, which statistics do not keep"):
        make_statistics(acting, sprites, tmp_path, progress=False)

    def measured(*_: Any) -> None:
        raise AssertionError("clips that cannot be kept were measured")

    monkeypatch.setattr(RealMeasurements, "measure", measured)
    with pytest.raises(UserError, match="further conditions"):
        make_statistics(PROTOCOL, KeyboardSprites(10, num_frames=9, size=32), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_reference_rows_need_videos(sprites: Sprites, tmp_path: Path) -> None:
    statistics = RealStatistics(
        make_statistics(PROTOCOL, sprites, tmp_path, progress=False), PROTOCOL
    )
    with pytest.raises(UserError, match="Reference rows need real videos"):
        evaluate_references([], PROTOCOL, tmp_path / "references", statistics)


# --- files

Change = Callable[[dict[str, Any], dict[str, Any]], None]


def _drop(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    del about["networks"]


def _shorten(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    place = next(place for place in tensors if place != "indices")
    tensors[place] = tensors[place][1:]


def _not_finite(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    place = next(place for place in tensors if place != "indices")
    tensors[place][0] = torch.nan


def _list(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    about["clips"] = [1, 2]


def _without_a_caption(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    about["clips"].popitem()


def _of_another_clip(tensors: dict[str, Any], about: dict[str, Any]) -> None:
    tensors["indices"][0] = 1000


@pytest.mark.parametrize(
    "change", [_drop, _shorten, _not_finite, _list, _without_a_caption, _of_another_clip]
)
def test_files_with_other_content(change: Change, sprites: Sprites, tmp_path: Path) -> None:
    path = make_statistics(PROTOCOL, sprites, tmp_path, progress=False)
    tensors, metadata = load_tensors(path)
    about = json.loads(metadata["about"])
    change(tensors, about)
    save_tensors(path, tensors, {**metadata, "about": json.dumps(about)})
    with pytest.raises(UserError, match="its content is not statistics of real clips"):
        RealStatistics(path, PROTOCOL)


def test_clips_of_another_size(videos: Path, protocol: Path, tmp_path: Path) -> None:
    mine = read_protocol(protocol)
    path = make_statistics(mine, real_clips(mine, videos), tmp_path, progress=False)
    tensors, metadata = load_tensors(path)
    about = {**json.loads(metadata["about"]), "shape": [9, 10**6, 10**6, 3]}
    save_tensors(path, tensors, {**metadata, "about": json.dumps(about)})
    with pytest.raises(UserError, match="or have another size"):
        RealStatistics(path, mine)


def test_damaged_and_foreign_files(sprites: Sprites, tmp_path: Path) -> None:
    path = make_statistics(PROTOCOL, sprites, tmp_path, progress=False)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        RealStatistics(path, PROTOCOL)
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="not a readable file of `arvid stats make`"):
        RealStatistics(path, PROTOCOL)
    save_tensors(path, {"indices": torch.arange(3)}, {"format": "something"})
    with pytest.raises(UserError, match="not a file of `arvid stats make`"):
        RealStatistics(path, PROTOCOL)


# --- the commands


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Four real videos in two classes."""
    for i, clip in enumerate(Sprites(4, num_frames=12, size=32)):
        write_video(tmp_path / "real" / ("Jump", "Run")[i % 2] / f"v{i}.mp4", clip.video, 8, crf=0)
    return tmp_path / "real"


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    """A protocol that cuts clips itself."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "summary: s\ntask: generation\nmetrics: [fd-pixels]\nnum_clips: 4\nclip: {num_frames: 9, size: 32}\n"
    )
    return path


def test_the_commands_need_the_videos_once(
    videos: Path, protocol: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "theirs"
    for i, clip in enumerate(Sprites(4, num_frames=9, size=32, seed=7)):
        write_video(theirs / f"{i}.mp4", clip.video, 8, crf=0)
    given = ["evaluate", "--videos", str(theirs), "--protocol", str(protocol)]
    out = tmp_path / "statistics"
    make = ["stats", "make", "--protocol", str(protocol), "--real", str(videos), "--out", str(out)]
    assert main(make) == 0
    (file,) = out.iterdir()
    assert f"arvid evaluate --real {file}" in capsys.readouterr().out
    assert main([*given, "--real", str(videos), "--out", str(tmp_path / "a")]) == 0
    shutil.rmtree(videos)
    assert main([*given, "--real", str(file), "--out", str(tmp_path / "b")]) == 0
    (a,), (b,) = (load_run(tmp_path / name) for name in "ab")
    assert a.metrics == b.metrics
    assert a.protocol_hash == b.protocol_hash
    listed = [*given, "--real", str(file), "--real-list", "list.txt"]
    assert main(listed) == 2
    assert "leave --real-list out" in capsys.readouterr().err
    assert main([*make[:-1], str(protocol)]) == 2
    assert "mine.yaml is a file. Give a folder" in capsys.readouterr().err


def test_what_statistics_cannot_serve_is_refused_before_anything_is_scored(
    videos: Path, protocol: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = read_protocol(protocol)
    file = make_statistics(mine, real_clips(mine, videos), tmp_path, progress=False)
    other = protocol.with_name("predicted.yaml")
    other.write_text(
        protocol.read_text().replace("generation", "prediction") + "condition_frames: 1\n"
    )
    given = ["evaluate", "--videos", str(videos), "--protocol", str(protocol), "--real", str(file)]
    given += ["--out", str(tmp_path / "out")]
    for options, message in (
        (["--protocol", str(other)], "is a prediction, which needs the frames"),
        (["--references", str(tmp_path / "references")], "Reference rows need real videos"),
    ):
        assert main([*given, *options]) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.out == ""
    assert not (tmp_path / "out").exists()


def test_a_run_generates_for_the_kept_captions(
    videos: Path, protocol: Path, trained_run: Path, tmp_path: Path
) -> None:
    mine = read_protocol(protocol)
    dataset = real_clips(mine, videos)
    statistics = RealStatistics(make_statistics(mine, dataset, tmp_path, progress=False), mine)
    copies = [shutil.copytree(trained_run, tmp_path / name / "run") for name in ("a", "b")]
    a, b = (
        evaluate_run(*each)
        for each in zip(copies, (mine, mine), (dataset, statistics), strict=True)
    )
    assert a.metrics == b.metrics
    assert a.protocol_hash == b.protocol_hash


def test_annotations_are_kept(videos: Path, protocol: Path, tmp_path: Path) -> None:
    mine = read_protocol(protocol)
    dataset = real_clips(mine, videos)
    path = make_statistics(mine, dataset, tmp_path, progress=False)
    statistics = real_set(mine, path)
    assert isinstance(statistics, RealStatistics)
    assert len(statistics) == 4
    assert statistics.classes == ("Jump", "Run")
    for ours, theirs in zip(statistics, dataset, strict=True):
        for name in ("name", "caption", "label", "motion", "fps", "attributes"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert ours.video.shape == theirs.video.shape
        assert not ours.video.any()
