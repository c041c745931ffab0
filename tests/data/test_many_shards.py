"""Token shards in large numbers: opened when they are read, few at a time; copies of a URL within a limit."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save, save_file

from arvid.contracts import TokenSpec, UserError
from arvid.data import _shard_copies, shard, shard_files, token_shards
from arvid.data.shard_files import Manifest, begin, read_manifest, shard_name, write_shard
from arvid.data.token_shards import TokenShards
from arvid.sealed import seal, seal_tensors

Build = Callable[..., Any]
MANIFEST = Manifest(
    tokenizer="t",
    data="d",
    spec=TokenSpec("discrete", 300, (4, 8, 8), True),
    clip_shape=(5, 16, 16),
    classes=("cat",),
    num_clips=24,
    clips_per_shard=2,
)
CAPTIONS = ["", "a cat", "eine Katze, 猫 \U0001f408", "half a pair: \ud83d", "a\nb\0c", '"quoted"']


def fill(folder: Path, manifest: Manifest = MANIFEST) -> list[torch.Tensor]:
    """Write random shards. Returns the tokens of each clip."""
    begin(folder, manifest)
    tokens = torch.randint(300, (manifest.num_clips, 2, 2, 2))
    for number in range(manifest.num_shards):
        clips = manifest.clips_of(number)
        facts = [
            {"caption": CAPTIONS[i % 6], "label": np.int64(i), "motion": np.float32(i), "fps": 8.0}
            for i in clips
        ]
        write_shard(folder, manifest, number, tokens[clips.start : clips.stop], None, facts)
    return list(tokens)


def to_format_3(folder: Path) -> None:
    """Rewrite a folder as earlier versions wrote it, with captions in the headers of the shards."""
    path = folder / shard_files.MANIFEST
    value = {**json.loads(path.read_text()), "format": "arvid tokens 3", "checksum": "0" * 64}
    path.write_bytes(seal((json.dumps(value, indent=1) + "\n").encode()))
    manifest = read_manifest(str(folder))
    for number in range(manifest.num_shards):
        file = folder / shard_name(number)
        tensors = {k: v for k, v in load_file(file).items() if not k.startswith("caption")}
        captions = json.dumps([CAPTIONS[i % 6] for i in manifest.clips_of(number)])
        metadata = {"captions": captions, "name": manifest.name_of(number)}
        file.write_bytes(seal_tensors(save(tensors, metadata)))


def require_equal(shards: TokenShards, tokens: list[torch.Tensor]) -> None:
    for i in torch.randperm(len(shards)).tolist():
        example = shards.example(i)
        assert torch.equal(example["tokens"], tokens[i])
        assert example["caption"] == CAPTIONS[i % 6]
        assert (example["label"], example["motion"], example["fps"]) == (i, i, 8)


def num_open_files(folder: Path) -> int:
    """Files of a folder that this process has open or mapped."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("needs /proc, to count open files")
    found = Path("/proc/self/maps").read_text().count(str(folder))
    for link in descriptors.iterdir():
        try:
            found += os.readlink(link).startswith(str(folder))
        except FileNotFoundError:  # the descriptor of this listing
            continue
    return found


@pytest.mark.parametrize("older", [False, True])
def test_captions_and_conditions_come_back_as_they_were(tmp_path: Path, older: bool) -> None:
    tokens = fill(tmp_path)
    if older:
        to_format_3(tmp_path)
    require_equal(TokenShards(str(tmp_path)), tokens)


def test_an_older_folder_is_filled_with_newer_shards(tmp_path: Path) -> None:
    tokens = fill(tmp_path)
    newer = {n: (tmp_path / shard_name(n)).read_bytes() for n in (1, 11)}
    to_format_3(tmp_path)
    for number, content in newer.items():
        (tmp_path / shard_name(number)).write_bytes(content)
    require_equal(TokenShards(str(tmp_path)), tokens)


@pytest.mark.parametrize("older", [False, True])
def test_few_shards_are_open_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    tokens = fill(tmp_path)
    if older:
        to_format_3(tmp_path)
    monkeypatch.setattr(token_shards, "MAX_OPEN", 3)
    shards = TokenShards(str(tmp_path))
    assert num_open_files(tmp_path) == 0
    for _ in range(2):
        require_equal(shards, tokens)
        assert num_open_files(tmp_path) == 3
    shards.example(0)
    shards.example(4)
    shards.example(1)
    shards.example(23)
    assert list(shards._shards) == [2, 0, 11]
    del shards
    assert num_open_files(tmp_path) == 0


def test_seventy_thousand_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a process can map on Linux. The files are links to a few shards of format 2, without checksums."""
    manifest = dataclasses.replace(MANIFEST, num_clips=70_000, clips_per_shard=1)
    begin(tmp_path, manifest)
    path = tmp_path / shard_files.MANIFEST
    value = json.loads(path.read_text())
    del value["checksum"]
    path.write_text(json.dumps({**value, "format": "arvid tokens 2"}))
    for number in range(70_000):
        file = f"{tmp_path}/{shard_name(number)}"
        if number % 10_000 == 0:
            first, text = file, f"of shard {number}"
            tokens = np.full((1, 2, 2, 2), number // 10_000, np.uint16)
            conditions = {"label": np.zeros(1, int), "motion": np.ones(1), "fps": np.ones(1)}
            save_file({"tokens": tokens, **conditions}, file, {"captions": json.dumps([text])})
        else:
            os.link(first, file)
    monkeypatch.setattr(token_shards, "AT_ONCE", 0)
    monkeypatch.setattr(token_shards, "AHEAD", 0)
    shards = TokenShards(str(tmp_path))
    assert num_open_files(tmp_path) == 0
    for i in (*range(0, 70_000, 700), 69_999):
        example = shards.example(i)
        assert (example["tokens"] == i // 10_000).all()
        assert example["caption"] == f"of shard {i // 10_000 * 10_000}"
    assert len(shards._shards) <= token_shards.MAX_OPEN
    (tmp_path / shard_name(66_666)).unlink()
    with pytest.raises(UserError, match=r"66666.safetensors is missing"):
        shards.example(66_666)
    with pytest.raises(UserError, match=r"1 of 70000 shards are missing \(66666.safetensors\)"):
        TokenShards(str(tmp_path))


def test_folders_that_are_too_large_to_read_ahead_are_verified_when_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path)
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", lambda self: started.append(self))
    monkeypatch.setattr(token_shards, "AT_ONCE", 0)
    TokenShards(str(tmp_path))
    assert len(started) == 1
    monkeypatch.setattr(token_shards, "AHEAD", 0)
    path = tmp_path / shard_name(5)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    shards = TokenShards(str(tmp_path))
    assert len(started) == 1
    shards.example(9)
    with pytest.raises(UserError, match=r"00005.safetensors is damaged"):
        shards.example(10)


# Copies of a URL


def test_copies_stay_within_their_limit(tmp_path: Path, own_cache: Path) -> None:
    tokens = fill(tmp_path / "there")
    size = (tmp_path / "there" / shard_name(0)).stat().st_size
    shards = TokenShards((tmp_path / "there").as_uri(), cache_gib=3.5 * size / 2**30)

    def copies() -> list[int]:
        return sorted(int(path.stem) for path in own_cache.rglob("0*.safetensors"))

    for index in (0, 2, 4):
        shards.example(index)
    for age, number in enumerate((1, 2, 0)):  # 1 was opened longest ago
        (path,) = own_cache.rglob(shard_name(number))
        os.utime(path, (age, age))
    shards.example(6)
    assert copies() == [0, 2, 3]
    TokenShards(shards.path, cache_gib=1).example(4)  # now 2 is the newest
    shards.example(8)
    assert copies() == [2, 3, 4]
    require_equal(shards, tokens)
    assert len(copies()) <= 3
    with pytest.raises(UserError, match="cache_gib"):
        TokenShards(shards.path, cache_gib=0)


def test_copies_that_killed_processes_left_are_counted_and_deleted(
    tmp_path: Path, own_cache: Path
) -> None:
    fill(tmp_path / "there")
    size = (tmp_path / "there" / shard_name(0)).stat().st_size
    shards = TokenShards((tmp_path / "there").as_uri(), cache_gib=3.5 * size / 2**30)
    shards.example(0)
    (folder,) = (own_cache / "shards").iterdir()
    old, new = (folder / f".0000{n}-k1ll3d.safetensors" for n in (8, 9))
    for path in (old, new):
        path.write_bytes(bytes(2 * size))
    os.utime(old, (1, 1))
    shards.example(2)
    assert not old.exists()
    assert new.exists()  # another process may be writing it
    assert [path.name for path in folder.glob("0*")] == [shard_name(1)]


def test_a_copy_that_is_deleted_while_it_is_verified_is_read(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may delete it to make space."""
    tokens = fill(tmp_path / "there")
    verify = shard.Shard.verify

    def deleted_before(one: shard.Shard) -> None:
        one.path.unlink()
        verify(one)

    monkeypatch.setattr(shard.Shard, "verify", deleted_before)
    require_equal(TokenShards((tmp_path / "there").as_uri()), tokens)


def test_a_copy_of_another_user_is_read(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time of opening cannot be set."""
    tokens = fill(tmp_path / "there")
    shards = TokenShards((tmp_path / "there").as_uri(), cache_gib=1)
    require_equal(shards, tokens)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    require_equal(TokenShards(shards.path, cache_gib=1), tokens)


def test_threads_and_prefetching_copy_a_shard_once(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = fill(tmp_path / "there")
    read, names = shard_files.read_bytes, []

    def counted(path: str) -> bytes:
        names.append(path.rpartition("/")[2])
        return read(path)

    monkeypatch.setattr(_shard_copies, "read_bytes", counted)
    shards = TokenShards((tmp_path / "there").as_uri())
    shards.prefetch(range(12))
    others = [TokenShards(shards.path) for _ in range(3)]
    threads = [threading.Thread(target=require_equal, args=(one, tokens)) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    require_equal(shards, tokens)
    assert sorted(names) == [shard_name(n) for n in range(12)]


def test_prefetching_neither_fails_nor_delays_the_end(tmp_path: Path) -> None:
    fill(tmp_path / "there")
    (tmp_path / "there" / shard_name(0)).unlink()
    program = f"""
import threading
from arvid.data import _shard_copies
from arvid.data.token_shards import TokenShards
read, wanted = _shard_copies.read_bytes, threading.Event()

def hanging(path):
    if "00001" in path:
        wanted.set()
        threading.Event().wait()
    return read(path)

_shard_copies.read_bytes = hanging
shards = TokenShards("{(tmp_path / "there").as_uri()}")
shards.prefetch(range(12))
assert wanted.wait(60)
shards.example(10)
print("read", flush=True)
"""
    environment = {**os.environ, "ARVID_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=environment,
    )
    assert (done.stdout, done.stderr) == ("read\n", "")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, own_cache: Path) -> None:
    fill(tmp_path / "there")
    own_cache.write_text("a file")
    with pytest.raises(UserError, match=r"cannot be copied into .*Set ARVID_CACHE"):
        TokenShards((tmp_path / "there").as_uri()).example(0)


# Errors


def test_a_tensor_without_a_row_for_each_clip_is_damage(tmp_path: Path) -> None:
    """A read of its last row would return the next tensor."""
    fill(tmp_path)
    path = tmp_path / shard_name(3)
    tensors = load_file(path)
    name = read_manifest(str(tmp_path)).name_of(3)
    for broken in ("label", "caption_ends"):
        content = save({**tensors, broken: tensors[broken][:1]}, {"name": name})
        path.write_bytes(seal_tensors(content))
        with pytest.raises(UserError, match=rf"00003.* is damaged \({broken} has 1 rows for 2"):
            TokenShards(str(tmp_path))
    del tensors["tokens"]
    path.write_bytes(seal_tensors(save(tensors, {"name": name})))
    with pytest.raises(UserError, match=r"00003.safetensors is damaged \(it has no tokens"):
        TokenShards(str(tmp_path))


def test_too_many_open_files_are_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Advice to delete the shard would be wrong."""
    fill(tmp_path)
    shards = TokenShards(str(tmp_path))

    def refuse(*_: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"00000.safetensors cannot be read: Too many open files"):
        shards.example(0)


def test_short_reads_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads of more than 2 GiB are short, and so are reads on some network file systems."""
    tokens = fill(tmp_path)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, num, start: pread(file, min(num, 3), start))
    monkeypatch.setattr(shard, "_FIRST_READ", 3)
    require_equal(TokenShards(str(tmp_path)), tokens)


@pytest.mark.parametrize("changes", [{"num_clips": 0}, {"clips_per_shard": 0}])
def test_a_manifest_of_no_clips_is_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    path = tmp_path / shard_files.MANIFEST
    fill(tmp_path)
    value = {**json.loads(path.read_text()), **changes, "checksum": "0" * 64}
    path.write_bytes(seal((json.dumps(value, indent=1) + "\n").encode()))
    with pytest.raises(
        UserError, match=r"is not a manifest of token shards \(.* clips in shards of"
    ):
        TokenShards(str(tmp_path))


def test_ids_of_many_bits(tmp_path: Path) -> None:
    manifest = dataclasses.replace(
        MANIFEST, spec=TokenSpec("discrete", 2**40, (4, 8, 8), True), num_clips=2
    )
    begin(tmp_path, manifest)
    tokens = torch.tensor([2**40 - 1, 2**31]).view(2, 1, 1, 1)
    facts = [{"caption": "", "label": -1, "motion": 0.0, "fps": 8.0}] * 2
    write_shard(tmp_path, manifest, 0, tokens, None, facts)
    shards = TokenShards(str(tmp_path))
    assert [int(shards.example(i)["tokens"]) for i in range(2)] == [2**40 - 1, 2**31]
    assert shards.example(1)["caption"] == ""


def test_threads_that_copy_ahead_end_with_their_set(tmp_path: Path, own_cache: Path) -> None:
    fill(tmp_path / "there")
    before = threading.active_count()
    shards = TokenShards((tmp_path / "there").as_uri())
    shards.prefetch([0])
    assert threading.active_count() == before + _shard_copies.PREFETCHES
    del shards
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
