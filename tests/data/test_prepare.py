"""`arvid data DATASET OUT`: from the download to manifests, on real clips and on small copies of the formats."""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from arvid.cli import main
from arvid.data.clips import ClipSpec
from arvid.data.folder import VideoFolder
from arvid.data.manifest import VideoManifest
from arvid.data.prepare.digits import Digits
from arvid.data.prepare.facts import DATASETS
from arvid.data.prepare.lossless import write_lossless
from arvid.data.prepare.moving_mnist import bounce, render
from arvid.data.prepare.tfrecords import RecordError, bytes_features, read_records
from arvid.data.video import read_video, write_video

CLIP = ClipSpec(num_frames=4, size=16, window="start")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def description(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "dataset.json").read_text())
    return found


def prepare(*words: object) -> int:
    return main(["data", *map(str, words)])


def noise(num_frames: int, height: int = 64, width: int = 64, *, seed: int = 0) -> np.ndarray:
    shape = (num_frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_clip(path: Path, num_frames: int = 6) -> None:
    write_video(path, noise(num_frames, 16, 16), 8)


def write_frames(folder: Path, num_frames: int = 5) -> None:
    folder.mkdir(parents=True)
    for number, pixels in enumerate(noise(num_frames, 36, 64)):
        cv2.imwrite(str(folder / f"frame{number}.jpg"), pixels)


# --- UCF-101


@pytest.fixture(scope="module")
def ucf101(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT for the 55 clips with the official lists."""
    out = tmp_path_factory.mktemp("data") / "ucf101"
    data = shared / "data"
    assert (
        prepare("ucf101", out, "--source", data / "ucf101_mini", "--lists", data / "ucf101_splits")
        == 0
    )
    return out


def test_ucf101_has_official_lists_labels_and_captions(ucf101: Path, shared: Path) -> None:
    listed = rows(ucf101 / "train01.csv")
    mini = (shared / "data/ucf101_splits/mini_trainlist01.txt").read_text().split("\n")[:-1]
    assert [row["path"] for row in listed] == [f"videos/{line.split()[0]}" for line in mini]
    assert [int(row["label"]) for row in listed] == [int(line.split()[1]) - 1 for line in mini]
    assert len(rows(ucf101 / "manifest.csv")) == 55
    first = listed[0]
    assert first["caption"] == "biking"
    assert (first["height"], first["width"], first["num_frames"]) == ("240", "320", "240")


def test_ucf101_says_what_is_missing(ucf101: Path) -> None:
    found = description(ucf101)
    assert found["splits"]["train01"] == {"clips": 27, "frames": 5673}
    assert found["missing"]["train01"] == {"not there": 9510}
    assert "clips: 55 of 13,320" in found["remarks"]
    assert len(found["classes"]) == 101


def test_manifest_gives_the_clips_of_the_folder(ucf101: Path, shared: Path) -> None:
    by_manifest = VideoManifest(ucf101 / "test01.csv", CLIP)
    lists = shared / "data/ucf101_splits/testlist01.txt"
    by_folder = VideoFolder(ucf101 / "videos", CLIP, split_list=lists)
    videos = {f"videos/{clip.name}": clip.video for clip in by_folder}
    assert len(by_manifest) == len(videos) == 28
    for clip in by_manifest:
        np.testing.assert_array_equal(clip.video, videos[clip.name])


def test_own_split_lists_work_with_a_folder(ucf101: Path) -> None:
    taken = VideoFolder(ucf101 / "videos", CLIP, split_list=ucf101 / "lists/train01.txt")
    assert len(taken) == 27
    assert not taken.missing


def test_ucf101_of_an_archive_without_class_folders_or_lists(tmp_path: Path) -> None:
    """Like the zip file that --download fetches. The case of class names differs, as in UCF-101."""
    archive = tmp_path / "UCF101_videos.zip"
    names = [
        f"v_{c}_g{g:02d}_c{n:02d}"
        for c in ("HandStandPushups", "Archery")
        for g in range(1, 9)
        for n in (1, 2)
    ]
    write_clip(tmp_path / "clip.mp4")
    with zipfile.ZipFile(archive, "w") as file:
        for name in names:
            file.write(tmp_path / "clip.mp4", f"UCF101/{name}.mp4")
    assert prepare("ucf101", tmp_path / "out", "--source", archive, "--val-fraction", 0.3) == 0
    found = description(tmp_path / "out")
    assert found["classes"] == ["Archery", "HandStandPushups"]
    assert any("no official lists" in remark for remark in found["remarks"])
    splits = [
        {row["path"][:-8] for row in rows(tmp_path / f"out/{s}.csv")} for s in ("train", "val")
    ]
    assert not splits[0] & splits[1], "clips of one recording stay together"
    assert (tmp_path / "out/videos").readlink() == Path("unpacked")


def test_handstand_pushups_are_found_whatever_their_capitals(tmp_path: Path) -> None:
    clip = tmp_path / "UCF-101/HandstandPushups/v_HandStandPushups_g01_c01.mp4"
    write_clip(clip)
    clip.rename(clip.with_suffix(".avi"))
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"1 Archery\r\n2 HandstandPushups\r\n")
    line = b"HandstandPushups/v_HandStandPushups_g01_c01.avi 2\r\n"
    (lists / "trainlist01.txt").write_bytes(line.replace(b"v_HandStand", b"v_Handstand"))
    assert prepare("ucf101", tmp_path / "out", "--source", tmp_path / "UCF-101") == 0
    (row,) = rows(tmp_path / "out/train01.csv")
    assert (row["label"], row["caption"]) == ("1", "handstand pushups")


def test_strict_refuses_an_incomplete_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "clips/v_Archery_g01_c01.mp4")
    words = ("ucf101", tmp_path / "out", "--source", tmp_path / "clips", "--strict")
    assert prepare(*words) == 2
    assert "clips: 1 of 13,320" in capsys.readouterr().err
    assert not (tmp_path / "out/manifest.csv").exists()


# --- a folder


def test_folder_has_the_split_of_video_folder(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/weizmann64"
    assert prepare("folder", tmp_path, "--source", source, "--val-fraction", 0.2) == 0
    for split in ("train", "val"):
        expected = VideoFolder(source, CLIP, split=split, val_fraction=0.2)
        found = VideoManifest(tmp_path / f"{split}.csv", CLIP)
        assert [clip.label for clip in found] == [clip.label for clip in expected]
        assert [clip.name for clip in found] == [f"videos/{clip.name}" for clip in expected]
    assert rows(tmp_path / "manifest.csv")[0]["caption"] == "bend"


def test_broken_videos_are_left_out_by_reason(tmp_path: Path) -> None:
    write_clip(tmp_path / "in/a/1.mp4")
    (tmp_path / "in/a/2.mp4").write_bytes(b"nothing")
    assert (
        prepare("folder", tmp_path / "out", "--source", tmp_path / "in", "--val-fraction", 0) == 0
    )
    assert len(rows(tmp_path / "out/train.csv")) == 1
    assert not (tmp_path / "out/val.csv").exists()
    assert sum(description(tmp_path / "out")["missing"]["train"].values()) == 1


def test_out_must_not_lie_among_the_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "in/a/1.mp4")
    assert prepare("folder", tmp_path / "in/out", "--source", tmp_path / "in") == 2
    assert "Use another folder" in capsys.readouterr().err


@pytest.mark.parametrize("facts", DATASETS, ids=lambda facts: facts.name)
def test_without_a_source_the_error_says_where_to_get_it(
    facts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(facts.name, tmp_path / "out") == 2
    assert facts.get in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- Kinetics-600


def test_kinetics_counts_missing_clips_by_reason(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    write_clip(clips / "train/flying kite/aaaaaaaaaaa_000003_000013.mp4")
    write_clip(clips / "val/bbbbbbbbbbb.mp4")
    write_clip(clips / "unlisted_000000_000010.mp4")
    (clips / "train/ccccccccccc_000000_000010.mp4").write_bytes(b"")
    (clips / "train/ddddddddddd_000000_000010.mp4").write_bytes(b"no video")
    lists = tmp_path / "lists"
    lists.mkdir()
    heading = "label,youtube_id,time_start,time_end,split\n"
    lines = ["flying kite,aaaaaaaaaaa,3,13", "zumba,ccccccccccc,0,10", "zumba,ddddddddddd,0,10"]
    lines += ["zumba,eeeeeeeeeee,0,10", "zumba,fffffffffff,0,10"]
    (lists / "train.csv").write_text(heading + "".join(f"{line},train\n" for line in lines))
    (lists / "validate.csv").write_text(heading + "abseiling,bbbbbbbbbbb,5,15,val\n")
    assert prepare("kinetics600", tmp_path / "out", "--source", clips, "--lists", lists) == 0
    found = description(tmp_path / "out")
    reasons = found["missing"]["train"]
    assert (reasons.pop("not downloaded"), reasons.pop("empty")) == (2, 1)
    assert list(reasons.values()) == [1], "the one that cannot be read"
    assert found["classes"] == ["abseiling", "flying kite", "zumba"]
    assert "videos that no list names: 1" in found["remarks"]
    (row,) = rows(tmp_path / "out/train.csv")
    assert (row["caption"], row["label"]) == ("flying kite", "1")
    assert [row["label"] for row in rows(tmp_path / "out/val.csv")] == ["0"]


# --- Moving MNIST


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, ending: str) -> None:
    """12 training and 4 test digits: the picture of a digit is a square whose brightness is its number."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {"train": np.arange(12) % 10, "t10k": np.arange(4) + 6}
    pictures = {name: np.zeros((len(of), 28, 28), np.uint8) for name, of in labels.items()}
    for name, of in labels.items():
        pictures[name][:, 4:24, 4:24] = (55 + 20 * of)[:, None, None]
    if ending == ".npz":
        arrays = {"x_train": pictures["train"], "y_train": labels["train"]}
        arrays |= {"x_test": pictures["t10k"], "y_test": labels["t10k"]}
        np.savez(folder / "mnist.npz", **arrays)
        return
    for name, of in labels.items():
        write_idx(folder / f"{name}-images-idx3-ubyte{ending}", pictures[name])
        write_idx(folder / f"{name}-labels-idx1-ubyte{ending}", of)


FEW = ("--num-train", 3, "--num-val", 2, "--num-test", 2)


@pytest.mark.parametrize(("place", "ending"), [("MNIST/raw", ""), (".", ".gz"), (".", ".npz")])
def test_moving_mnist_is_the_same_from_any_copy(tmp_path: Path, place: str, ending: str) -> None:
    source, out = tmp_path / "mnist", tmp_path / "out"
    write_mnist(source / place, ending)
    assert prepare("moving-mnist", out, "--source", source, *FEW) == 0
    train = rows(out / "train.csv")
    assert [row["path"] for row in train] == [f"videos/train/{i:05d}.mp4" for i in range(3)]
    assert (train[0]["num_frames"], train[0]["height"], train[0]["width"]) == ("20", "64", "64")
    frames = read_video(out / train[0]["path"]).frames
    digits = [int(word) for word in train[0]["caption"].split() if word.isdigit()]
    assert set(np.unique(frames)) <= {0, *(55 + 20 * digit for digit in digits)}
    assert int(frames.astype(np.int64).sum()) == 8_619_225  # for this seed, for any copy of MNIST
    assert "MNIST has 12 train digits here, not 60,000" in description(out)["remarks"]


def test_published_test_clips_are_taken_as_they_are(tmp_path: Path) -> None:
    source, out = tmp_path / "mnist", tmp_path / "out"
    write_mnist(source, "")
    published = noise(20, 5, 64)[..., 0].reshape(20, 5, 8, 8)
    np.save(source / "mnist_test_seq.npy", published)
    assert prepare("moving-mnist", out, "--source", source, *FEW) == 0
    for number, row in enumerate(rows(out / "test.csv")):
        expected = np.repeat(published[:, number, ..., None], 3, axis=-1)
        np.testing.assert_array_equal(read_video(out / row["path"]).frames, expected)


def test_digits_bounce() -> None:
    positions = bounce(np.random.default_rng(1), 400)
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    assert positions.min() == 0
    assert positions.max() == 1
    assert np.median(steps) == pytest.approx(0.1)
    pictures = np.full((1, 28, 28), 200, np.uint8)
    video, caption = render(
        Digits(pictures, None), np.random.default_rng(0), num_frames=30, size=64
    )
    assert video.max() == 200, "overlapping digits are not added up"
    assert ((video > 0).sum((1, 2)) <= 2 * 28 * 28).all()
    assert caption == "two handwritten digits move"


# --- BAIR


def _varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low]) if not rest else bytes([low | 128]) + _varint(rest)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def example(features: Mapping[str, bytes]) -> bytes:
    """A tf.train.Example with byte features, and a feature of numbers between them."""
    entries = [
        _field(1, _field(1, k.encode()) + _field(2, _field(1, _field(1, v))))
        for k, v in features.items()
    ]
    numbers = _field(2, _field(1, struct.pack("<4f", 1, 2, 3, 4)))
    entries.insert(1, _field(1, _field(1, b"0/action") + _field(2, numbers)))
    return _field(1, b"".join(entries))


def record(data: bytes) -> bytes:
    return struct.pack("<QI", len(data), 0) + data + bytes(4)


def robot(seed: int) -> tuple[np.ndarray, bytes]:
    """A clip of the camera aux1, and its record, which also holds a clip of another camera."""
    frames, other = noise(30, seed=seed), noise(30, seed=100 + seed)
    features = {f"{i}/image_main/encoded": other[i].tobytes() for i in range(30)}
    features |= {f"{i}/image_aux1/encoded": frames[i].tobytes() for i in range(30)}
    return frames, record(example(features))


def test_bair_of_the_archive_keeps_each_pixel(tmp_path: Path) -> None:
    archive = tmp_path / "bair_robot_pushing_dataset_v0.tar"
    clips = [robot(seed) for seed in range(3)]
    files = {
        "softmotion30_44k/train/traj_0_to_255.tfrecords": clips[0][1] + clips[1][1],
        "softmotion30_44k/test/traj_0_to_255.tfrecords": clips[2][1],
        "softmotion30_44k/readme.txt": b"no records",
    }
    with tarfile.open(archive, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert prepare("bair", tmp_path / "out", "--source", archive) == 0
    found = [*rows(tmp_path / "out/train.csv"), *rows(tmp_path / "out/test.csv")]
    assert [row["path"] for row in found] == [
        "videos/train/traj_0_to_255/000.mp4",
        "videos/train/traj_0_to_255/001.mp4",
        "videos/test/traj_0_to_255/000.mp4",
    ]
    for row, (frames, _) in zip(found, clips, strict=True):
        np.testing.assert_array_equal(read_video(tmp_path / "out" / row["path"]).frames, frames)
    assert "train: 2 of 43,264" in description(tmp_path / "out")["remarks"]


def test_bair_of_frames_that_were_unpacked(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_frames(tmp_path / f"in/processed/{split}/traj_0_to_255/0")
    assert prepare("bair", tmp_path / "out", "--source", tmp_path / "in") == 0
    (row,) = rows(tmp_path / "out/test.csv")
    assert (row["path"], row["num_frames"]) == ("videos/test/traj_0_to_255/0", "5")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (robot(0)[1][:-1], "ends within"),
        (bytes(range(200)), "no TensorFlow record file"),
        (b"abc", "ends"),
    ],
)
def test_damaged_record_files_are_named(
    content: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    (tmp_path / "train/traj_0_to_255.tfrecords").write_bytes(content)
    assert prepare("bair", tmp_path / "out", "--source", tmp_path) == 2
    message = capsys.readouterr().err
    assert "train/traj_0_to_255.tfrecords" in message
    assert reason in message


def test_features_of_a_damaged_record_are_an_error() -> None:
    data = example({"a": b"1", "b": b"2"})
    assert {k: bytes(v) for k, v in bytes_features(memoryview(data)).items()} == {
        "a": b"1",
        "b": b"2",
    }
    with pytest.raises(RecordError):
        bytes_features(memoryview(data[:-1]))
    assert [bytes(r) for r in read_records(io.BytesIO(record(b"x") + record(b"")))] == [b"x", b""]


# --- sky


def test_sky_of_an_archive(tmp_path: Path) -> None:
    write_frames(tmp_path / "in/sky_timelapse/sky_train/long1/long1_1")
    write_frames(tmp_path / "in/sky_timelapse/sky_train/long1/long1_2")
    write_frames(tmp_path / "in/sky_timelapse/sky_test/long2/long2_1")
    archive = tmp_path / "sky_timelapse.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "in/sky_timelapse", "sky_timelapse")
    assert prepare("sky", tmp_path / "out", "--source", archive) == 0
    train = rows(tmp_path / "out/train.csv")
    assert [row["path"] for row in train] == [f"videos/sky_train/long1/long1_{i}" for i in (1, 2)]
    assert (train[0]["fps"], train[0]["height"]) == ("25.0", "36")
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert len(VideoManifest(moved / "test.csv", CLIP)) == 1, "OUT can be moved"


def test_lossless_videos_of_odd_sizes_keep_each_pixel(tmp_path: Path) -> None:
    frames = noise(7, 31, 45)
    write_lossless(tmp_path / "clip.mp4", frames, 12)
    found = read_video(tmp_path / "clip.mp4")
    np.testing.assert_array_equal(found.frames, frames)
    assert found.fps == 12
