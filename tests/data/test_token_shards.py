"""Token shards: they hold the encoder's tokens, finished shards are kept, and faults are reported."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from arvid.contracts import Clip, UserError
from arvid.data import shard as shard_module
from arvid.data import token_shards
from arvid.data.collate import normalise
from arvid.data.shard_files import missing_shards, read_manifest, write_shard
from arvid.data.sprites import Sprites
from arvid.data.token_cache import cache_folder, encode_dataset
from arvid.data.token_shards import TokenShards

CLIPS = Sprites(22, num_frames=5, size=16)
Build = Callable[..., Any]


class Broken(Sprites):
    """A dataset that fails at clip 9 of 22."""

    def __getitem__(self, index: int) -> Clip:
        if index == 9:
            raise UserError("clip 9 is broken")
        return super().__getitem__(index)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five shards of four clips and one of two, each encoded in batches of three, in order."""
    monkeypatch.setattr("random.Random.shuffle", lambda self, shards: None)
    monkeypatch.setattr("arvid.data.token_cache.CLIPS_PER_SHARD", 4)
    monkeypatch.setattr("arvid.data.token_cache.MAX_BATCH", 3)


@pytest.fixture
def folder(tmp_path: Path, corners: Build) -> Path:
    """Shards of the clips."""
    encode_dataset(corners(), "hash", CLIPS, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_examples_are_what_encoding_gives(tmp_path: Path, corners: Build, kind: str) -> None:
    tokenizer = corners(kind)
    assert encode_dataset(tokenizer, "hash", CLIPS, tmp_path) == []
    shards = TokenShards(str(tmp_path))
    assert len(shards) == len(CLIPS) == 22
    for i, clip in enumerate(CLIPS):
        expected = tokenizer.encode(normalise(clip.video)[None])[0]
        example = shards.example(i)
        assert torch.equal(example["tokens"], expected)
        assert example["tokens"].dtype == expected.dtype
        assert example["caption"] == clip.caption
        assert (example["label"], example["motion"]) == (clip.label, clip.motion)


def test_ids_take_as_few_bytes_as_the_vocabulary_needs(tmp_path: Path, corners: Build) -> None:
    encode_dataset(corners("discrete"), "hash", CLIPS, tmp_path)
    assert load_file(tmp_path / "00000.safetensors")["tokens"].dtype == np.uint16  # 300 ids


def test_the_manifest_says_what_the_tokens_are(folder: Path, corners: Build) -> None:
    manifest = TokenShards(str(folder)).manifest
    assert (manifest.tokenizer, manifest.data) == ("hash", CLIPS.fingerprint())
    assert (manifest.spec, manifest.clip_shape) == (corners().spec, (5, 16, 16))
    assert (manifest.num_clips, manifest.num_shards) == (22, 6)
    assert manifest.classes == CLIPS.classes


def test_shards_stand_for_their_dataset(folder: Path) -> None:
    shards = TokenShards(str(folder))
    assert shards.fingerprint() == CLIPS.fingerprint()
    assert shards.classes == CLIPS.classes
    clip = shards[5]
    assert (clip.caption, clip.label, clip.motion) == (
        CLIPS[5].caption,
        CLIPS[5].label,
        CLIPS[5].motion,
    )
    with pytest.raises(UserError, match="holds the tokens of clips, not their frames"):
        _ = clip.video
    with pytest.raises(IndexError):
        shards.example(22)


def test_rates_are_kept(tmp_path: Path, corners: Build) -> None:
    class Filmed(Sprites):
        def __getitem__(self, index: int) -> Clip:
            return dataclasses.replace(super().__getitem__(index), fps=12.5)

    encode_dataset(corners(), "hash", Filmed(3, num_frames=5, size=16), tmp_path)
    assert TokenShards(str(tmp_path))[1].fps == 12.5


def test_what_is_unknown_of_a_clip_stays_unknown(tmp_path: Path, corners: Build) -> None:
    class Bare(Sprites):
        def __getitem__(self, index: int) -> Clip:
            return Clip(video=super().__getitem__(index).video)

    encode_dataset(corners(), "hash", Bare(3, num_frames=5, size=16), tmp_path)
    example, clip = TokenShards(str(tmp_path)).example(1), TokenShards(str(tmp_path))[1]
    assert (example["label"], example["motion"] == example["motion"]) == (-1, False)
    assert (clip.caption, clip.label, clip.motion, clip.fps) == ("", None, None, None)


def test_shards_can_be_sent_to_worker_processes(folder: Path) -> None:
    shards = TokenShards(str(folder))
    copy = pickle.loads(pickle.dumps(shards))
    assert torch.equal(copy.example(21)["tokens"], shards.example(21)["tokens"])


# What is finished is not lost, and not done again


def test_what_another_process_makes_meanwhile_is_not_made_again(
    tmp_path: Path, corners: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process finishes the other half of the folder while this one is at its first shard."""
    other, tokenizer = corners(), corners()
    encode = tokenizer.encode

    def encode_and_let_the_other_work(video: torch.Tensor) -> torch.Tensor:
        encode_dataset(other, "hash", CLIPS, tmp_path, share=(1, 2))
        return encode(video)

    monkeypatch.setattr(tokenizer, "encode", encode_and_let_the_other_work)
    assert encode_dataset(tokenizer, "hash", CLIPS, tmp_path) == []
    assert other.num_encoded == 4 + 4 + 2
    assert tokenizer.num_encoded == 22 - other.num_encoded
    assert TokenShards(str(tmp_path)).example(21)["caption"] == CLIPS[21].caption


def test_an_interrupted_encoding_goes_on(tmp_path: Path, corners: Build) -> None:
    with pytest.raises(UserError, match="clip 9 is broken"):
        encode_dataset(corners(), "hash", Broken(22, num_frames=5, size=16), tmp_path)
    finished = {p.name: p.read_bytes() for p in tmp_path.glob("*.safetensors")}
    assert sorted(finished) == ["00000.safetensors", "00001.safetensors"]
    with pytest.raises(UserError, match=r"4 of 6 shards are missing \(00002.safetensors"):
        TokenShards(str(tmp_path))
    tokenizer = corners()
    assert encode_dataset(tokenizer, "hash", CLIPS, tmp_path) == []
    assert tokenizer.num_encoded == 22 - 8
    assert {name: (tmp_path / name).read_bytes() for name in finished} == finished


def test_a_full_disk_costs_the_shard_that_did_not_fit(
    tmp_path: Path, corners: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Path.write_bytes, []

    def full(self: Path, content: bytes) -> int:
        written.append(self)
        if len(written) > 4:  # the manifest is the first
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            encode_dataset(corners(), "hash", CLIPS, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4  # with the manifest, and no partial file
    tokenizer = corners()
    encode_dataset(tokenizer, "hash", CLIPS, tmp_path)
    assert tokenizer.num_encoded == 22 - 12


def test_any_number_of_processes_make_the_same_files(
    folder: Path, tmp_path: Path, corners: Build
) -> None:
    parts = [corners() for _ in range(4)]
    left = [
        encode_dataset(tokenizer, "hash", CLIPS, tmp_path / "parts", share=(3 - i, 4))
        for i, tokenizer in enumerate(parts)
    ]
    assert [len(missing) for missing in left] == [5, 4, 2, 0]
    assert sum(tokenizer.num_encoded for tokenizer in parts) == 22
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert {p.name: p.read_bytes() for p in (tmp_path / "parts").iterdir()} == files


def test_a_finished_folder_is_not_encoded_again(folder: Path, corners: Build) -> None:
    tokenizer = corners()
    assert encode_dataset(tokenizer, "hash", CLIPS, folder) == []
    assert tokenizer.num_encoded == 0


def test_a_folder_is_not_filled_with_unlike_tokens(folder: Path, corners: Build) -> None:
    with pytest.raises(UserError, match="tokenizer is 'hash' there, 'other' here"):
        encode_dataset(corners(), "other", CLIPS, folder)
    with pytest.raises(UserError, match=r"data is .* there"):
        encode_dataset(corners(), "hash", Sprites(22, num_frames=5, size=16, seed=1), folder)


def test_the_cache_is_keyed_by_tokenizer_and_data() -> None:
    sets = [CLIPS, Sprites(22, num_frames=5, size=16, seed=1), Sprites(21, num_frames=5, size=16)]
    keys = {cache_folder(h, s) for h in ("a", "b") for s in sets}
    assert len(keys) == 6
    assert cache_folder("a", CLIPS) == cache_folder("a", Sprites(22, num_frames=5, size=16))


# Object storage


def test_shards_are_read_by_url(folder: Path, own_cache: Path) -> None:
    shards = TokenShards(folder.as_uri())
    assert not own_cache.exists()  # nothing is fetched before it is needed
    expected = TokenShards(str(folder)).example(9)["tokens"]
    assert torch.equal(shards.example(9)["tokens"], expected)
    assert [p.name for p in own_cache.rglob("*.safetensors")] == ["00002.safetensors"]
    (folder / "00002.safetensors").unlink()
    assert torch.equal(TokenShards(folder.as_uri()).example(9)["tokens"], expected)
    (folder / "00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"00003.safetensors: there is no such file"):
        shards.example(12)


# Damage


def flip(path: Path, position: int = -1) -> None:
    """Flip a bit of the byte at a position."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def unseal(folder: Path) -> None:
    """Remove the checksums from the files, as in the older format."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    del value["checksum"]
    path.write_text(json.dumps({**value, "format": "arvid tokens 2"}, indent=1) + "\n")
    for shard in folder.glob("*.safetensors"):
        captions = json.dumps([CLIPS[i].caption for i in clips_of(shard)])
        save_file(load_file(shard), shard, {"captions": captions})


def clips_of(shard: Path) -> range:
    return range(22)[int(shard.stem) * 4 :][:4]


def test_a_flipped_bit_is_named_when_the_folder_is_opened(folder: Path) -> None:
    flip(folder / "00003.safetensors")
    message = (
        r"00003.safetensors is damaged \(its checksum .*Delete it and run the same `arvid encode`"
    )
    with pytest.raises(UserError, match=message):
        TokenShards(str(folder))


def test_large_shards_are_verified_ahead_and_before_their_first_clip_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    verified: list[str] = []
    verify = shard_module.Shard.verify

    def noted(shard: shard_module.Shard) -> None:
        verified.append(shard.path.stem)
        verify(shard)

    monkeypatch.setattr(token_shards, "AT_ONCE", 0)
    monkeypatch.setattr(shard_module.Shard, "verify", noted)
    threads: list[Thread] = []
    monkeypatch.setattr(Thread, "start", lambda self: threads.append(self))
    flip(folder / "00003.safetensors")
    shards = TokenShards(str(folder))
    for i in (0, 1, 2, 21):
        shards.example(i)
    assert verified == ["00000", "00005"]
    with pytest.raises(UserError, match=r"00003.safetensors is damaged"):
        shards.example(12)
    (thread,) = threads
    assert thread.daemon
    thread.run()
    assert verified[3:] == ["00001", "00002", "00003", "00004"]
    assert "00003.safetensors is damaged" in caplog.text
    shards.example(4)
    assert len(verified) == 7


def test_processes_that_load_from_a_folder_verify_it_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_shards, "AT_ONCE", 0)
    monkeypatch.setattr(Thread, "start", lambda self: None)
    shards = TokenShards(str(folder))
    worker = multiprocessing.get_context("fork").Process(target=shards.example, args=(9,))
    worker.start()
    worker.join()
    assert shards._verified.tolist() == [False, False, True, False, False, False]


def test_encode_finds_damage(folder: Path, corners: Build) -> None:
    flip(folder / "00003.safetensors")
    (folder / "00005.safetensors").unlink()
    assert encode_dataset(corners(), "hash", CLIPS, folder, share=(0, 2), verify=True) == [5]
    with pytest.raises(UserError, match=r"00003.safetensors is damaged"):
        encode_dataset(corners(), "hash", CLIPS, folder, share=(1, 2), verify=True)
    (folder / "00003.safetensors").unlink()
    assert encode_dataset(corners(), "hash", CLIPS, folder, verify=True) == []
    TokenShards(str(folder))


def test_a_shard_that_lost_its_checksum_is_damaged(folder: Path) -> None:
    path = folder / "00001.safetensors"
    save_file(load_file(path), path, {"captions": "[]"})
    with pytest.raises(UserError, match=r"00001.safetensors is damaged \(it has lost its checksum"):
        TokenShards(str(folder))


def test_a_shard_in_the_place_of_another_is_named(
    folder: Path, tmp_path: Path, corners: Build
) -> None:
    path = folder / "00001.safetensors"
    whole = path.read_bytes()
    encode_dataset(corners(), "other", CLIPS, tmp_path / "other")
    for other in (folder / "00002.safetensors", tmp_path / "other" / path.name):
        path.write_bytes(other.read_bytes())
        with pytest.raises(
            UserError, match=r"00001.safetensors belongs to another folder, or is another"
        ):
            TokenShards(str(folder))
    path.write_bytes(whole)
    TokenShards(str(folder))


def test_an_edited_manifest_is_named(folder: Path, corners: Build) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"num_clips": 22', '"num_clips": 20'))
    with pytest.raises(UserError, match=r"manifest.json is not a manifest .*checksum.*Delete it"):
        TokenShards(str(folder))
    path.unlink()
    tokenizer = corners()
    assert encode_dataset(tokenizer, "hash", CLIPS, folder) == []
    assert tokenizer.num_encoded == 0
    assert len(TokenShards(str(folder))) == 22


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_folders_without_checksums_are_read_and_filled(
    tmp_path: Path, corners: Build, kind: str
) -> None:
    encode_dataset(corners(kind), "hash", CLIPS, tmp_path)
    expected = [TokenShards(str(tmp_path)).example(i) for i in range(22)]
    unseal(tmp_path)
    (tmp_path / "00002.safetensors").unlink()
    assert not read_manifest(str(tmp_path)).sealed
    tokenizer = corners(kind)
    assert encode_dataset(tokenizer, "hash", CLIPS, tmp_path, verify=True) == []
    assert tokenizer.num_encoded == 4
    shards = TokenShards(str(tmp_path))
    for i, example in enumerate(expected):
        assert torch.equal(shards.example(i)["tokens"], example["tokens"])
        assert shards.example(i)["caption"] == example["caption"]
    flip(tmp_path / "00002.safetensors")
    with pytest.raises(UserError, match=r"00002.safetensors is damaged"):
        TokenShards(str(tmp_path))


def test_caches_that_were_filled_without_checksums_are_found() -> None:
    what = json.dumps(["arvid tokens 2", "a", CLIPS.fingerprint()])
    assert cache_folder("a", CLIPS).name == hashlib.sha256(what.encode()).hexdigest()[:24]


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("discrete", 300, "its clip 2 has ids outside the vocabulary of 300"),
        ("continuous", float("nan"), "its clip 2 has tokens that are not finite"),
    ],
)
def test_invalid_tokens_are_not_read(
    tmp_path: Path, corners: Build, kind: str, value: float, message: str
) -> None:
    encode_dataset(corners(kind), "hash", CLIPS, tmp_path)
    path, manifest = tmp_path / "00001.safetensors", read_manifest(str(tmp_path))
    tokens = torch.from_numpy(load_file(path)["tokens"].astype(np.float32))
    tokens[2, 0, 0, 0] = value
    facts = [{"caption": "", "label": 0, "motion": 0.0, "fps": 8.0}] * 4
    write_shard(tmp_path, manifest, 1, tokens, None, facts)
    with pytest.raises(UserError, match=rf"00001.safetensors is damaged \({message}"):
        TokenShards(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("discrete", 300, "gives ids outside the vocabulary of 300 for clip 9"),
        ("discrete", -1, "gives ids outside the vocabulary of 300 for clip 9"),
        ("continuous", float("inf"), "gives tokens that are not finite for clip 9"),
    ],
)
def test_invalid_tokens_are_not_written(
    tmp_path: Path,
    corners: Build,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    value: float,
    message: str,
) -> None:
    tokenizer = corners(kind)
    encode, ninth = tokenizer.encode, normalise(CLIPS[9].video)

    def ruin(video: torch.Tensor) -> torch.Tensor:
        tokens = encode(video)
        tokens[[torch.equal(clip, ninth) for clip in video]] = value
        return tokens

    monkeypatch.setattr(tokenizer, "encode", ruin)
    with pytest.raises(UserError, match=f"The tokenizer Corners {message}"):
        encode_dataset(tokenizer, "hash", CLIPS, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == [
        "00000.safetensors",
        "00001.safetensors",
    ]


def test_a_tokenizer_whose_weights_are_ruined_encodes_nothing(
    tmp_path: Path, corners: Build
) -> None:
    tokenizer = corners("discrete")
    tokenizer.register_parameter("weight", torch.nn.Parameter(torch.tensor([1.0, float("nan")])))
    with pytest.raises(
        UserError, match=r"tokenizer Corners has weights .*1 of 2 numbers of weight"
    ):
        encode_dataset(tokenizer, "hash", CLIPS, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_damaged_shard_is_not_copied_from_object_storage(folder: Path, own_cache: Path) -> None:
    shards = TokenShards(folder.as_uri())
    whole = (folder / "00002.safetensors").read_bytes()
    flip(folder / "00002.safetensors")
    with pytest.raises(UserError, match=r"file://.*00002.safetensors is damaged"):
        shards.example(9)
    assert not list(own_cache.rglob("*.safetensors"))
    (folder / "00002.safetensors").write_bytes(whole)
    shards.example(9)
    (copy,) = own_cache.rglob("*.safetensors")
    flip(copy)
    with pytest.raises(UserError) as caught:
        TokenShards(folder.as_uri()).example(9)
    assert f"{copy} is damaged" in str(caught.value)
    copy.unlink()
    TokenShards(folder.as_uri()).example(9)


# What is wrong is said


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_broken_shard_is_named(folder: Path, keep: int) -> None:
    path = folder / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"00001.safetensors is damaged \(.*Delete it"):
        TokenShards(str(folder))


def test_a_shard_of_another_folder_is_named(folder: Path) -> None:
    path = folder / "00001.safetensors"
    save_file({name: value[:3] for name, value in load_file(path).items()}, path)
    with pytest.raises(
        UserError, match=r"00001.safetensors belongs to another folder: it has 3 clips"
    ):
        TokenShards(str(folder))


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "00004.safetensors").unlink()
    assert missing_shards(folder, TokenShards(folder.as_uri()).manifest) == [4]
    with pytest.raises(UserError, match=r"1 of 6 shards are missing \(00004.safetensors\)"):
        TokenShards(str(folder))


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"format": "other"}'])
def test_a_broken_manifest_is_named(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest.json is not a manifest of token shards"):
        TokenShards(str(folder))


def test_a_manifest_with_a_field_too_few_or_many_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    for wrong in ({**value, "more": 1}, {k: v for k, v in value.items() if k != "classes"}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="is not a manifest"):
            TokenShards(str(folder))


def test_a_folder_without_shards_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"there is no manifest\.json\. Make them with `arvid encode`"
    ):
        TokenShards(str(tmp_path))
    with pytest.raises(UserError, match="cannot be read"):
        TokenShards("nosuchstorage://bucket/folder")
