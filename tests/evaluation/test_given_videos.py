"""Given videos are cut like the real ones, and identical folders score as identical under every protocol."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from arvid.cli import main
from arvid.contracts import UserError
from arvid.data.clips import ClipSpec
from arvid.data.sprites import Sprites
from arvid.data.video import write_video
from arvid.evaluation.external import NO_SETTING, VideosRow
from arvid.evaluation.harness import evaluate
from arvid.evaluation.protocols import Protocol, protocols, read_protocol
from arvid.evaluation.real_clips import real_clips
from arvid.evaluation.records import ResultRecord

NUM = 6
OWN_CLIPS = sorted(name for name, protocol in protocols().items() if protocol.clip)


def shades(num_frames: int, start: int = 40, step: int = 3) -> np.ndarray:
    """Frames (T, 32, 32, 3) each of one shade, which tells the frame."""
    levels = start + step * np.arange(num_frames)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos in two classes, 60 frames of 32x32 at 25 per second, each of unlike content and with actions."""
    root = tmp_path_factory.mktemp("same")
    clips = Sprites(NUM, num_frames=60, size=32)
    for i, clip in enumerate(clips):
        place = root / ("Left", "Right")[i % 2] / f"v{i // 2}.mp4"
        write_video(place, clip.video, 25, crf=0)
        np.savez(place.with_suffix(".npz"), actions=np.arange(60) % 4)
    return root


def small(protocol: Protocol, **values: Any) -> Protocol:
    """A protocol for six small videos; the rate, the window, the order and what is done with short ones stay.

    Where its clips are longer than the videos, they get the length of the others.
    """
    assert protocol.clip is not None
    num_frames = min(protocol.clip.num_frames, 17)
    fitting = (num_frames - 1) // protocol.scored_every + 1
    scored = min(protocol.scored_frames or fitting, fitting)
    values = {
        "num_clips": 2 if protocol.folds > 1 else NUM,
        "num_real": protocol.num_real and NUM,
        "folds": min(protocol.folds, 3),
        "clip": dataclasses.replace(protocol.clip, size=32, num_frames=num_frames),
        "scored_frames": protocol.scored_frames and scored,
        "condition_frames": min(protocol.condition_frames, 5),
        "metrics": ("fd-pixels",) if protocol.task == "generation" else ("psnr", "ssim"),
        "paired_size": protocol.paired_size and 32,
        "trajectories": 1,
        **values,
    }
    return dataclasses.replace(protocol, **values)


def score(videos: Path, protocol: Protocol, real: Path, out: Path) -> ResultRecord:
    dataset = real_clips(protocol, real)
    row = VideosRow(videos, "theirs", protocol=protocol, dataset=dataset)
    return evaluate(row, protocol, dataset, out, description=NO_SETTING, progress=False)


@pytest.mark.parametrize("name", OWN_CLIPS)
def test_identical_folders_are_identical(folder: Path, tmp_path: Path, name: str) -> None:
    protocol = small(protocols()[name])
    if protocol.num_real is not None:  # of a real set of its own each fold sees a part only
        protocol = dataclasses.replace(protocol, num_clips=NUM, folds=1)
    dataset = real_clips(protocol, folder)
    row = VideosRow(folder, "same", protocol=protocol, dataset=dataset)
    folds = [protocol.choose(dataset, fold)[0] for fold in range(protocol.folds)]
    for number, indices in enumerate(protocol.in_batches(folds)):
        clips = [dataset[i] for i in indices]
        np.testing.assert_array_equal(
            row.generate(clips, protocol, number), np.stack([clip.video for clip in clips])
        )
    record = score(folder, protocol, folder, tmp_path)
    best = {"fd-pixels": 0, "psnr": 100, "ssim": 1}
    for metric in record.metrics:
        assert metric.value == pytest.approx(best[metric.name], abs=1e-3)


@pytest.mark.parametrize("kind", ["frames", "unlike", "short"])
def test_identical_folders_of_other_kinds(folder: Path, tmp_path: Path, kind: str) -> None:
    """Folders of frames; videos of unlike lengths, rates and sizes; videos that are too short and go on in black."""
    root = tmp_path / "same"
    for i in range(4):
        frames = shades(10 if kind == "short" else 40 + i * (kind == "unlike"), 40 + i)
        if kind == "frames":
            (root / f"v{i}").mkdir(parents=True)
            for number, pixels in enumerate(frames):
                cv2.imwrite(str(root / f"v{i}" / f"{number}.png"), pixels)
        else:
            unlike = i * (kind == "unlike")
            write_video(root / f"v{i}.mp4", frames[:, : 32 - 2 * unlike], 25 + unlike, crf=0)
    protocol = small(protocols()["nbp-ucf101-cfp"], num_clips=4, folds=1)
    assert score(root, protocol, root, tmp_path / "out").metrics[0].value == 100


CLIP = ClipSpec(num_frames=9, size=32, window="start", fps=10)
PREDICTION = Protocol(
    name="prediction",
    summary="",
    task="prediction",
    metrics=("psnr",),
    num_clips=2,
    order="listed",
    clip=CLIP,
    condition_frames=1,
)


def given(folder: Path, num_frames: int, fps: float, num: int = 2, step: int = 3) -> Path:
    for i in range(num):
        write_video(folder / f"v{i}.mp4", shades(num_frames, step=step), fps, crf=0)
    return folder


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return given(tmp_path / "real", 60, 25)


def taken(videos: Path, protocol: Protocol, real: Path) -> tuple[list[int], str]:
    """Which frames of the first video are looked at, and what the record says."""
    dataset = real_clips(protocol, real)
    row = VideosRow(videos, "theirs", protocol=protocol, dataset=dataset)
    video = row.generate([dataset[0]], protocol, 0)[0]
    return [round((level - 40) / 3) for level in video.mean((1, 2, 3))], row.options["videos"]


@pytest.mark.parametrize(
    ("num_frames", "fps", "rate", "frames", "words"),
    [
        (60, 25, "cut", [0, 3, 5, 8, 10, 13, 15, 18, 20], "60 frames at 25 per second, cut like"),
        (
            40,
            25,
            "cut",
            [0, 3, 5, 8, 10, 13, 15, 18, 20],
            "40 frames at 25 per second, taken at 10",
        ),
        (40, 25, "keep", [*range(9)], "40 frames at 25 per second, taken as they are, the first 9"),
        (60, 25, "keep", [*range(9)], "60 frames at 25 per second, taken as they are, the first 9"),
        (24, 10, "cut", [*range(9)], "24 frames at 10 per second, cut like the real clips"),
        (12, 10, "cut", [*range(9)], "2 of 12 frames, the first 9 taken, 32x32"),
        (9, 10.4, "cut", [*range(9)], "2 of 9 frames, 32x32"),
        (9, 10, "cut", [*range(9)], "2 of 9 frames, 32x32"),
        (9, 5, "cut", [*range(9)], "9 frames at 5 per second, slower than the protocol's 10"),
    ],
)
def test_rates(
    real: Path, tmp_path: Path, num_frames: int, fps: float, rate: Any, frames: Any, words: str
) -> None:
    protocol = dataclasses.replace(PREDICTION, given_rate=rate)
    videos = given(tmp_path / "given", num_frames, fps)
    seen, said = taken(videos, protocol, real)
    assert seen == frames
    assert words in said


def test_a_folder_of_frames_states_no_rate(real: Path, tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / "given" / f"v{i}").mkdir(parents=True)
        for number, pixels in enumerate(shades(9)):
            cv2.imwrite(str(tmp_path / "given" / f"v{i}" / f"{number}.png"), pixels)
    seen, said = taken(tmp_path / "given", PREDICTION, real)
    assert seen == list(range(9))
    assert said == "2 of 9 frames, which state no rate, 32x32"


def test_whole_videos_at_another_rate_are_cut_at_the_same_times(tmp_path: Path, real: Path) -> None:
    """A reconstruction of every second frame: the window lies in the middle."""
    protocol = dataclasses.replace(
        PREDICTION, clip=ClipSpec(num_frames=5, size=32, window="center", fps=5)
    )
    dataset = real_clips(protocol, real)
    wanted = dataset.cut(0).indices
    seen, said = taken(given(tmp_path / "given", 30, 12.5, step=6), protocol, real)
    np.testing.assert_allclose(seen, wanted, atol=1)
    assert seen[0] > 15
    assert "at 12.5 per second, cut like the real clips" in said


def test_videos_that_are_too_short_at_their_rate_are_refused(real: Path, tmp_path: Path) -> None:
    videos = given(tmp_path / "given", 15, 25)
    with pytest.raises(UserError, match="have 15 frames; the protocol looks at 9 at 10 per second"):
        taken(videos, PREDICTION, real)
    assert taken(videos, dataclasses.replace(PREDICTION, given_rate="keep"), real)[0][8] == 8


def test_unlike_rates_are_refused(real: Path, tmp_path: Path) -> None:
    videos = given(tmp_path / "given", 30, 25)
    write_video(videos / "v1.mp4", shades(30), 10, crf=0)
    with pytest.raises(UserError, match="different rates: 10 to 25 per second"):
        taken(videos, PREDICTION, real)


def test_equal_stems_pair_by_their_folders(tmp_path: Path) -> None:
    for root in ("real", "given"):
        for i, name in enumerate(("Run/v.mp4", "Walk/v.mp4")):
            write_video(tmp_path / root / name, shades(9, 40 + 60 * i), 10, crf=0)
    record = score(tmp_path / "given", PREDICTION, tmp_path / "real", tmp_path / "a")
    assert record.metrics[0].value == 100
    deeper = tmp_path / "results" / "model"
    deeper.mkdir(parents=True)
    for name in ("Run", "Walk"):
        (deeper / name).symlink_to(tmp_path / "given" / name)
    record = score(deeper.parent, PREDICTION, tmp_path / "real", tmp_path / "b")
    assert record.metrics[0].value == 100


def test_equal_stems_pair_by_their_endings(tmp_path: Path) -> None:
    for root in ("real", "given"):
        for i, name in enumerate(("v.mp4", "other.mp4")):
            write_video(tmp_path / root / name, shades(9, 40 + 60 * i), 10, crf=0)
        (tmp_path / root / "other.mp4").rename(tmp_path / root / "v.mkv")
    record = score(tmp_path / "given", PREDICTION, tmp_path / "real", tmp_path / "out")
    assert record.metrics[0].value == 100
    (tmp_path / "given" / "v.mkv").rename(tmp_path / "given" / "w.mkv")
    with pytest.raises(UserError, match=r"v\.mp4 also matches v\.mkv"):
        taken(tmp_path / "given", PREDICTION, tmp_path / "real")


def test_names_that_do_not_tell_videos_apart_are_refused(tmp_path: Path) -> None:
    for name in ("real/Run/v.mp4", "real/Walk/v.mp4", "flat/v.mp4", "flat/w.mp4"):
        write_video(tmp_path / name, shades(9), 10)
    for name in ("a/v.mp4", "b/v.mp4"):
        write_video(tmp_path / "copies" / name, shades(9), 10)
    with pytest.raises(UserError, match=r"v\.mp4 also matches Run/v\.mp4"):
        taken(tmp_path / "flat", PREDICTION, tmp_path / "real")
    with pytest.raises(UserError, match="2 videos match"):
        taken(tmp_path / "copies", PREDICTION, tmp_path / "real")


def test_folders_of_gif_are_scored(real: Path, tmp_path: Path) -> None:
    """GIF writes rates in hundredths of a second, and always has a channel for transparency."""
    (tmp_path / "given").mkdir()
    for i in range(2):
        with av.open(str(tmp_path / "given" / f"v{i}.gif"), "w") as file:
            stream = file.add_stream("gif", rate=8)
            stream.height, stream.width, stream.pix_fmt = 32, 32, "gray"
            for pixels in shades(9):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                file.mux(stream.encode(frame.reformat(format="gray")))
            file.mux(stream.encode(None))
    protocol = dataclasses.replace(PREDICTION, clip=dataclasses.replace(CLIP, fps=8))
    seen, said = taken(tmp_path / "given", protocol, real)
    assert seen == list(range(9))
    assert said == "2 of 9 frames, 32x32"


HASHES = {
    "arvid-1024-16f": "c48b5bfd56ffecf8",
    "clips-generation": "fe973842ed652759",
    "clips-prediction": "6e95bbfe7389679b",
    "latte-2048-16f": "d363c43c826547de",
    "magvit-ucf101": "cd58c66dddc9ac5e",
    "nbp-k600-fp": "18ab3e29afb20679",
    "nbp-rfvd-k600": "66c27114b9dd198b",
    "nbp-rfvd-ucf101": "e35a273f10003335",
    "nbp-ucf101-cfp": "1131cc18fefe1441",
    "nbp-ucf101-cg": "4b84cb452e728395",
    "nova-extrapolation": "94e506df66710814",
    "omnitokenizer-rfvd": "7eeb8f5af8265c74",
    "sprites-generation": "ed0905e7c02f6685",
    "sprites-prediction": "67e8e17ccee87404",
    "stylegan-v-2048-128f": "0295fda594d73585",
    "stylegan-v-2048-16f": "6c1d3e8ef65442ff",
}
"""Of the protocols that come with arvid, on the dataset below, before `given_rate` was there."""


class Endless:
    """As many real clips as anybody asks for."""

    def __len__(self) -> int:
        return 60_000

    def fingerprint(self) -> str:
        return "0" * 64


def test_hashes_of_protocols_stay(tmp_path: Path) -> None:
    """Records of before share their columns with new ones."""
    dataset: Any = Endless()
    found = {name: p.describe(dataset)["hash"] for name, p in protocols().items()}
    assert found | HASHES == found
    path = tmp_path / "nbp-k600-fp.yaml"
    path.write_text("base: nbp-k600-fp\ngiven_rate: keep\n")
    kept = read_protocol(path).describe(dataset)
    assert kept["given_rate"] == "keep"
    assert kept["hash"] != HASHES["nbp-k600-fp"]


def test_the_command_says_what_was_done(real: Path, tmp_path: Path) -> None:
    protocol = tmp_path / "pred10.yaml"
    protocol.write_text(
        "summary: own\ntask: prediction\nmetrics: [psnr, ssim]\ncondition_frames: 1\nnum_clips: 2\n"
        "clip: {num_frames: 9, size: 32, window: start, fps: 10}\n"
    )
    given = [f"--videos={real}", f"--real={real}", f"--protocol={protocol}"]
    assert main(["evaluate", *given, f"--out={tmp_path / 'out'}"]) == 0
    record = json.loads((tmp_path / "out/evaluation/pred10.json").read_text())
    assert [metric["value"] for metric in record["metrics"]] == pytest.approx([100, 1], abs=1e-3)
    assert record["options"]["videos"] == (
        "2 of 60 frames at 25 per second, cut like the real clips, 32x32"
    )
