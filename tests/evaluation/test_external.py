"""Folders of videos from elsewhere: bad input is an error, never a number."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from arvid import weights
from arvid.cli import main
from arvid.contracts import UserError
from arvid.data._files import FileDataset
from arvid.data.clips import ClipSpec
from arvid.data.sprites import Sprites
from arvid.data.video import write_video
from arvid.evaluation.external import NO_SETTING, VideosRow
from arvid.evaluation.harness import evaluate
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.real_clips import real_clips
from arvid.evaluation.records import ResultRecord, load_run
from arvid.report.comparison import Comparison

CLIP = ClipSpec(num_frames=9, size=32, window="start")
GENERATION = Protocol(
    name="generation",
    summary="",
    task="generation",
    metrics=("fd-pixels",),
    num_clips=4,
    order="listed",
    clip=CLIP,
    batch_size=3,
)
PREDICTION = Protocol(
    name="prediction",
    summary="",
    task="prediction",
    metrics=("psnr",),
    num_clips=4,
    clip=CLIP,
    condition_frames=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of four real videos each, 9 frames of 32x32."""
    root = tmp_path_factory.mktemp("real")
    for i, clip in enumerate(Sprites(8, num_frames=9, size=32)):
        write_video(
            root / ("MoveLeft", "MoveRight")[i % 2] / f"v_{i:02d}.mp4", clip.video, 8, crf=0
        )
    return root


@pytest.fixture
def real(folder: Path) -> FileDataset:
    return real_clips(GENERATION, folder)


def write(folder: Path, num: int = 4, shape: tuple[int, int, int] = (9, 32, 32)) -> Path:
    rng = np.random.default_rng(0)
    for i in range(num):
        write_video(folder / f"{i:03d}.mp4", rng.integers(0, 256, (*shape, 3), np.uint8), 8, crf=0)
    return folder


def score(videos: Path, real: FileDataset, protocol: Protocol, out: Path) -> ResultRecord:
    row = VideosRow(videos, "theirs", protocol=protocol, dataset=real)
    return evaluate(row, protocol, real, out, description=NO_SETTING, progress=False)


def test_real_clips_come_from_folders_and_manifests(folder: Path, tmp_path: Path) -> None:
    classes = real_clips(GENERATION, folder)
    assert (len(classes), classes[0].caption, classes[0].video.shape) == (
        8,
        "move left",
        (9, 32, 32, 3),
    )
    assert len(real_clips(GENERATION, folder / "MoveLeft")) == 4
    listed = tmp_path / "list.txt"
    listed.write_text("MoveLeft/v_00.mp4 1\nMoveRight/v_01.mp4 2\n")
    assert len(real_clips(GENERATION, folder, listed)) == 2
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text(json.dumps({"path": str(folder / "MoveLeft/v_00.mp4"), "caption": "x"}))
    assert real_clips(GENERATION, manifest)[0].caption == "x"
    with pytest.raises(UserError, match="is not a folder"):
        real_clips(GENERATION, tmp_path / "absent")


def test_the_real_clips_themselves_have_distance_zero(
    folder: Path, real: FileDataset, tmp_path: Path
) -> None:
    for i in range(4):
        write_video(tmp_path / f"v/{i}.mp4", real[i].video, 8, crf=0)
    record = score(tmp_path / "v", real, GENERATION, tmp_path / "out")
    noise = score(write(tmp_path / "noise"), real, GENERATION, tmp_path / "noise-out")
    assert record.metrics[0].value < 0.01 * noise.metrics[0].value
    assert (record.row, record.setting, record.metrics[0].count) == ("reference", {}, 4)
    assert record.options == {"videos": "4 of 9 frames, 32x32"}
    assert record.protocol["data"] == real.fingerprint()[:16]


def test_other_videos_of_equal_size_and_time_are_scored_anew(
    real: FileDataset, tmp_path: Path
) -> None:
    """Tools such as rsync keep the time of a file. The finished record of the old videos must not be used."""
    folder = write(tmp_path / "v")
    path, other = folder / "000.mp4", folder / "001.mp4"
    before = path.stat()
    size = max(before.st_size, other.stat().st_size)

    def identity_with(content: bytes) -> dict[str, Any]:
        path.write_bytes(content.ljust(size, b"\0"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return VideosRow(folder, "theirs", protocol=GENERATION, dataset=real).identity()

    mine, theirs = path.read_bytes(), other.read_bytes()
    first = identity_with(mine)
    assert identity_with(theirs) != first
    assert identity_with(mine) == first


def test_predictions_are_matched_by_name(real: FileDataset, tmp_path: Path) -> None:
    for i in reversed(range(8)):  # other files in between do no harm
        write_video(tmp_path / f"v/{Path(real[i].name).stem}.mp4", real[i].video, 8, crf=0)
    assert score(tmp_path / "v", real, PREDICTION, tmp_path / "a").metrics[0].value > 40
    with pytest.raises(UserError, match="no video called v_0"):
        score(write(tmp_path / "unnamed"), real, PREDICTION, tmp_path / "b")


def test_longer_and_larger_videos_are_cut_and_resized_and_the_record_says_so(
    real: FileDataset, tmp_path: Path
) -> None:
    record = score(write(tmp_path / "v", 5, (12, 48, 64)), real, GENERATION, tmp_path / "out")
    expected = "4 of 12 frames, the first 9 taken, 48x64, brought to 32x32"
    assert record.options == {"videos": expected}


def refused(videos: Path, real: FileDataset) -> str:
    with pytest.raises(UserError) as caught:
        VideosRow(videos, "theirs", protocol=GENERATION, dataset=real)
    return str(caught.value)


def test_bad_folders_are_refused_with_the_reason(real: FileDataset, tmp_path: Path) -> None:
    assert "holds 3 videos; protocol generation asks for 4" in refused(
        write(tmp_path / "a", 3), real
    )
    assert "holds 0 videos" in refused(tmp_path / "absent", real)
    sizes = write(write(tmp_path / "b"), 1, (9, 16, 16))
    assert "differ in length or size: 9 to 9 frames, 16x16, 32x32" in refused(sizes, real)
    lengths = write(write(tmp_path / "c"), 1, (11, 32, 32))
    assert "differ in length or size: 9 to 11 frames" in refused(lengths, real)
    short = write(tmp_path / "d", 4, (8, 32, 32))
    assert "have 8 frames; the protocol looks at 9" in refused(short, real)
    corrupt = write(tmp_path / "e")
    (corrupt / "001.mp4").write_bytes((corrupt / "001.mp4").read_bytes()[:300])
    assert "1 videos cannot be read: 001.mp4: " in refused(corrupt, real)
    (corrupt / "001.mp4").write_bytes(b"")
    assert "the file is empty" in refused(corrupt, real)


def encode(path: Path, codec: str, pixels: str, frame: np.ndarray) -> None:
    """A video of nine equal frames in any codec and pixel format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = "gray" if frame.ndim == 2 else "rgba"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = frame.shape[0], frame.shape[1], pixels
        for _ in range(9):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=source)))
        container.mux(stream.encode(None))


def test_transparency_is_refused_and_grey_has_three_equal_channels(
    real: FileDataset, tmp_path: Path
) -> None:
    clear = np.full((32, 32, 4), 120, np.uint8)
    for i in range(4):
        encode(tmp_path / f"clear/{i}.mov", "png", "rgba", clear)
        encode(tmp_path / f"grey/{i}.mkv", "ffv1", "gray", np.full((32, 32), 60 * i, np.uint8))
    assert "transparent, put them on a background first: 0.mov" in refused(tmp_path / "clear", real)
    row = VideosRow(tmp_path / "grey", "grey", protocol=GENERATION, dataset=real)
    video = row.generate([real[i] for i in range(3)], GENERATION, 0)
    np.testing.assert_array_equal(video[2], np.full((9, 32, 32, 3), 120, np.uint8))


def test_folds_take_other_videos(real: FileDataset, tmp_path: Path) -> None:
    protocol = Protocol(
        name="folds",
        summary="",
        task="generation",
        metrics=("fd-pixels",),
        num_clips=4,
        folds=2,
        clip=CLIP,
        batch_size=3,
    )
    record = score(write(tmp_path / "v", 8), real, protocol, tmp_path / "out")
    (value,) = record.metrics
    assert len(set(value.folds)) == 2
    assert value.value == pytest.approx(sum(value.folds) / 2)
    assert value.spread_kind == "deviation of folds"
    with pytest.raises(UserError, match=r"asks for 8 \(2 x 4\)"):
        VideosRow(write(tmp_path / "w", 7), "few", protocol=protocol, dataset=real)


def test_a_protocol_of_a_setting_cannot_score_videos(folder: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", f"--videos={folder}", f"--real={folder}"]
    assert main([*arguments, "--protocol=clips-generation", f"--out={tmp_path}"]) == 2


def test_the_command_scores_folders_and_their_floor(folder: Path, tmp_path: Path) -> None:
    protocol = tmp_path / "mine.yaml"
    protocol.write_text(
        "summary: mine\ntask: generation\nmetrics: [fd-pixels]\nnum_clips: 4\n"
        "clip: {num_frames: 9, size: 32, window: start}\n"
    )
    given = ["evaluate", f"--real={folder}", f"--protocol={protocol}"]
    runs = []
    for name in ("a", "b"):
        videos = write(tmp_path / name, 4 if name == "a" else 6)
        runs.append(tmp_path / "runs" / name)
        assert main([*given, f"--videos={videos}", f"--out={runs[-1]}", f"--name={name}"]) == 0
    references = tmp_path / "references"
    assert (
        main(
            [*given, f"--videos={tmp_path / 'a'}", f"--out={runs[0]}", f"--references={references}"]
        )
        == 0
    )
    found = sorted(p.name for p in references.iterdir())
    assert found == ["first-frame-repeated", "real"]
    comparison = Comparison.from_runs([*runs, references / "real"])
    assert comparison.notes[0].startswith("Made elsewhere")
    assert [column.key for column in comparison.columns] == ["mine/fd-pixels"]
    assert load_run(references / "real")[0].metrics[0].value < load_run(runs[0])[0].metrics[0].value


def test_weights_are_fetched_where_that_is_asked_for(
    folder: Path,
    web: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    protocol = tmp_path / "mine.yaml"
    protocol.write_text(
        "summary: mine\ntask: generation\nmetrics: [lpips]\nnum_clips: 4\n"
        "clip: {num_frames: 9, size: 32, window: start}\n"
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    alexnet = replace(weights.KNOWN["alexnet"], url=web.url("published.pth", b"another file"))
    monkeypatch.setitem(weights.KNOWN, "alexnet", alexnet)
    videos = write(tmp_path / "v")
    given = ["evaluate", f"--videos={videos}", f"--real={folder}", f"--protocol={protocol}"]
    for download, reason in (([], "which is missing"), (["--download"], "is not the published")):
        assert main([*given, f"--out={tmp_path / 'out'}", *download]) == 2
        assert reason in capsys.readouterr().err
