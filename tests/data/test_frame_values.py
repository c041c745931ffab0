"""Actions in .npz files beside videos: clips, fingerprints, faults, token shards, and TECO's datasets."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from arvid.cli import main
from arvid.contracts import UserError
from arvid.data.clips import ClipSpec
from arvid.data.folder import VideoFolder
from arvid.data.manifest import VideoManifest
from arvid.data.token_cache import encode_dataset
from arvid.data.token_shards import TokenShards
from arvid.data.video import read_video, write_video
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.real_clips import real_clips
from arvid.training.export import load_tokenizer

CLIP = ClipSpec(num_frames=5, size=32, window="random")
KEYS = ("stay", "left", "right")
ACTIONS = {"actions": KEYS}


def frames(num_frames: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """Frames whose first pixel is their index."""
    shape = (num_frames, size, size, 3)
    video = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    video[:, :8, :8] = 10 * np.arange(num_frames)[:, None, None, None]
    return video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos of 12 frames; the action of frame i is i modulo 3."""
    for name in ("a", "b"):
        write_video(tmp_path / "in" / "Walk" / f"{name}.mp4", frames(12), 8, crf=0)
        np.savez(tmp_path / "in" / "Walk" / f"{name}.npz", actions=np.arange(12) % 3)
    return tmp_path / "in"


def test_actions_are_those_of_the_frames(folder: Path) -> None:
    for spec in (CLIP, ClipSpec(num_frames=4, size=32, stride=3, window="start")):
        data = VideoFolder(folder, spec, conditions=ACTIONS, seed=3)
        assert data.value_names == ACTIONS
        for clip in data:
            shown = np.round(clip.video[:, 4, 4, 0] / 10).astype(int)
            assert clip.conditions["actions"].tolist() == (shown % 3).tolist()


def test_a_fingerprint_depends_on_actions_but_old_ones_stay(folder: Path) -> None:
    plain = VideoFolder(folder, CLIP).fingerprint()
    assert VideoFolder(folder, CLIP, conditions={}).fingerprint() == plain
    acting = VideoFolder(folder, CLIP, conditions=ACTIONS).fingerprint()
    np.savez_compressed(folder / "Walk/a.npz", actions=(np.arange(12) % 3).astype(np.int32))
    assert VideoFolder(folder, CLIP, conditions=ACTIONS).fingerprint() == acting
    np.savez(folder / "Walk/a.npz", actions=np.zeros(12, int))
    changed = VideoFolder(folder, CLIP, conditions=ACTIONS).fingerprint()
    assert len({plain, acting, changed}) == 3


def test_names_of_folders_of_frames_may_have_dots(folder: Path) -> None:
    for number in (1, 2):
        place = folder / "Walk" / f"walk.{number}"
        place.mkdir()
        for i, frame in enumerate(frames(12)):
            cv2.imwrite(str(place / f"{i:02d}.png"), frame[:, :, ::-1])
        np.savez(place.with_name(f"{place.name}.npz"), actions=np.full(12, number))
    found = {clip.name: clip for clip in VideoFolder(folder, CLIP, conditions=ACTIONS)}
    for number in (1, 2):
        assert found[f"Walk/walk.{number}"].conditions["actions"].tolist() == [number] * 5


def test_token_shards_keep_them(folder: Path, tmp_path: Path) -> None:
    data = VideoFolder(folder, CLIP, conditions=ACTIONS)
    encode_dataset(load_tokenizer("sprites-vae3d"), "hash", data, tmp_path / "shards")
    shards = TokenShards(str(tmp_path / "shards"))
    assert shards.value_names == ACTIONS
    assert shards[1].conditions["actions"].tolist() == data[1].conditions["actions"].tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, r"there is no a\.npz beside it"),
        ({"keys": np.zeros(12, int)}, r"a\.npz has no array 'actions', only: keys"),
        ({"actions": np.zeros(12)}, "must be whole numbers"),
        ({"actions": np.array(["left"] * 12)}, "must be numbers"),
        ({"actions": np.zeros(3, int)}, "has 3 rows, but a clip takes frame"),
        ({"actions": np.zeros((12, 1), int)}, r"one number per frame, got \(12, 1\)"),
        ({"actions": np.arange(12)}, "actions go up to 11, but 3 names are given: stay, left"),
        ({"actions": np.array([{}] * 12)}, "cannot be read as .npz"),
        (b"PK\3\4 no archive", "cannot be read as .npz"),
        (pickle.dumps([1]), "cannot be read as .npz"),
    ],
)
def test_faults_are_named(folder: Path, arrays: Any, message: str) -> None:
    path = folder / "Walk/a.npz"
    path.unlink()
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        np.savez(path, **arrays)
    with pytest.raises(UserError, match=message):
        list(VideoFolder(folder, CLIP, conditions=ACTIONS))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(12), r"a vector per frame, got \(12,\)"),
        (np.zeros((12, 3)), "action_vectors have 3 numbers, but 2 names are given: right, down"),
    ],
)
def test_vectors_of_another_shape(folder: Path, values: Any, message: str) -> None:
    np.savez(folder / "Walk/a.npz", action_vectors=values)
    with pytest.raises(UserError, match=message):
        VideoFolder(folder, CLIP, conditions={"action_vectors": ("right", "down")})


def test_a_shape_that_does_not_fit_into_memory_is_named(folder: Path) -> None:
    header = {"descr": "<i8", "fortran_order": False, "shape": (10**15,)}
    with (
        zipfile.ZipFile(folder / "Walk/a.npz", "w") as archive,
        archive.open("actions.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(UserError, match=r"a.npz cannot be read as \.npz: Unable to allocate"):
        VideoFolder(folder, CLIP, conditions=ACTIONS)


def test_an_npy_file_is_not_an_npz_file(folder: Path) -> None:
    np.save(folder / "Walk/a.npy", np.zeros(12, int))
    (folder / "Walk/a.npy").replace(folder / "Walk/a.npz")
    with pytest.raises(UserError, match=r"cannot be read as \.npz"):
        VideoFolder(folder, CLIP, conditions=ACTIONS)


def test_a_file_of_another_compression_is_named(folder: Path) -> None:
    """A flipped bit can give the number of an unknown compression."""
    path = folder / "Walk/a.npz"
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 10] = 77
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as \.npz: That compression"):
        VideoFolder(folder, CLIP, conditions=ACTIONS)


def test_options_that_contradict_each_other(folder: Path) -> None:
    with pytest.raises(UserError, match="Mirrored clips would contradict their actions"):
        VideoFolder(folder, CLIP, conditions=ACTIONS, mirror=True)
    with pytest.raises(UserError, match="motion has a value per clip"):
        VideoFolder(folder, CLIP, conditions={"motion": ()})
    with pytest.raises(UserError, match="acts"):
        VideoFolder(folder, CLIP, conditions={"acts": ()})


def test_a_protocol_asks_for_them(folder: Path) -> None:
    options: dict[str, Any] = {
        "name": "p",
        "summary": "",
        "task": "prediction",
        "metrics": ("psnr",),
    }
    protocol = Protocol(**options, clip=CLIP, condition_frames=1, conditions=("actions",))
    clip = real_clips(protocol, folder)[0]
    assert len(clip.conditions["actions"]) == 5
    with pytest.raises(UserError, match="so it needs a `clip`"):
        Protocol(**options, condition_frames=1, conditions=("actions",))


@pytest.mark.parametrize("dataset", ["dmlab", "minecraft"])
def test_tecos_datasets(dataset: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in" / dataset, tmp_path / "out"
    for number, split in enumerate(("train", "train", "test")):
        place = source / split / "0" / f"{number}.npz"
        place.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"actions": (np.arange(12) + number) % 4}
        if dataset == "dmlab":
            arrays["video"] = frames(12, seed=number)
        else:
            write_video(place.with_suffix(".mp4"), frames(12, seed=number), 20, crf=0)
        np.savez(place, **arrays)
        for suffix in (".npz", ".mp4"):
            place.with_name(f"._{number}{suffix}").write_bytes(b"macOS writes these")
    assert main(["data", dataset, str(out), "--source", str(tmp_path / "in")]) == 0
    parts = yaml.safe_load((out / "data.yaml").read_text())["data"]
    data = {part: VideoManifest(**given["init_args"], clip=CLIP) for part, given in parts.items()}
    assert {part: len(clips) for part, clips in data.items()} == {"train": 2, "val": 1}
    assert data["train"].value_names == {"actions": ("0", "1", "2", "3")}
    clip = data["val"][0]
    shown = np.round(clip.video[:, 4, 4, 0] / 10).astype(int)
    assert clip.conditions["actions"].tolist() == ((shown + 2) % 4).tolist()
    if dataset == "dmlab":
        pixels = read_video(out / "videos/test/0/2.mp4").frames
        np.testing.assert_array_equal(pixels, frames(12, seed=2))


def test_a_dmlab_file_of_another_shape_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        place = tmp_path / "in" / split / "0" / "0.npz"
        place.parent.mkdir(parents=True)
        np.savez(place, video=np.zeros((12, 3, 8, 8), np.uint8), actions=np.zeros(12, int))
    assert main(["data", "dmlab", str(tmp_path / "out"), "--source", str(tmp_path / "in")]) == 2
    assert "video must be uint8 (frames, height, width, 3)" in capsys.readouterr().err
