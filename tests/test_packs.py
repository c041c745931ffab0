"""Packs: values can be read after many writers and after a killed one, and damage is found."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from arvid import packs as module
from arvid.packs import ENTRY, Packs
from arvid.sealed import Damaged


def items(first: int, last: int) -> dict[bytes, bytes]:
    return {key(i): b"value %d" % i * (i % 7) for i in range(first, last)}


def key(i: int) -> bytes:
    return hashlib.sha256(b"%d" % i).digest()[:16]


def require(packs: Packs, values: dict[bytes, bytes]) -> None:
    assert {key: packs.read(key) for key in values} == values


def write(folder: Path, first: int, last: int) -> None:
    packs = Packs(folder)
    for i in range(first, last, 10):
        packs.write(items(i, i + 10))


def test_values_come_back(tmp_path: Path) -> None:
    packs = Packs(tmp_path / "packs")
    assert packs.read(key(3)) is None
    packs.write({})
    assert not (tmp_path / "packs").exists()
    packs.write(items(0, 1000))
    require(packs, items(0, 1000))
    assert packs.read(key(1000)) is None
    packs.write(items(1000, 1200))
    for reader in (packs, Packs(tmp_path / "packs"), pickle.loads(pickle.dumps(packs))):
        require(reader, items(0, 1200))
    assert len(list((tmp_path / "packs").iterdir())) <= 3 * 256


def test_a_value_that_is_written_again_replaces_the_first(tmp_path: Path) -> None:
    packs = Packs(tmp_path)
    packs.write(items(0, 300))
    require(packs, items(0, 300))
    packs.write({key(7): b"new"})
    assert Packs(tmp_path).read(key(7)) == b"new"
    require(Packs(tmp_path), {**items(0, 300), key(7): b"new"})


def test_keys_with_equal_prefixes_are_distinguished(tmp_path: Path) -> None:
    alike = {bytes([5]) * 12 + bytes([i]) * 4: b"%d" % i for i in range(20)}
    packs = Packs(tmp_path)
    packs.write(alike)
    require(packs, alike)
    assert packs.read(bytes([5]) * 12 + bytes([20]) * 4) is None


def test_processes_write_at_the_same_time(tmp_path: Path) -> None:
    reader = Packs(tmp_path)
    write(tmp_path, 0, 10)
    require(reader, items(0, 10))
    spawn = multiprocessing.get_context("fork")
    processes = [spawn.Process(target=write, args=(tmp_path, i, i + 200)) for i in (0, 100, 200)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    require(reader, items(0, 400))


@pytest.mark.parametrize("suffix", ["pack", "index"])
def test_what_a_killed_process_left_does_no_harm(tmp_path: Path, suffix: str) -> None:
    packs = Packs(tmp_path)
    packs.write(items(0, 500))
    for path in tmp_path.glob(f"*.{suffix}"):
        with path.open("ab") as file:
            file.write(b"a part of a")
    require(Packs(tmp_path), items(0, 500))
    require(packs, items(0, 500))
    Packs(tmp_path).write(items(500, 900))
    require(packs, items(0, 900))
    require(Packs(tmp_path), items(0, 900))


def test_values_that_did_not_reach_the_disk_are_damaged(tmp_path: Path) -> None:
    """After a power cut an entry may exist without its value. Values that are written later are found."""
    packs = Packs(tmp_path)
    packs.write({key(1): b"one"})
    (path,) = tmp_path.glob("*.pack")
    path.write_bytes(b"")
    with pytest.raises(Damaged, match="is damaged at byte 0"):
        packs.read(key(1))
    packs.write({key(1): b"other"})
    assert packs.read(key(1)) == b"other" == Packs(tmp_path).read(key(1))


def test_a_flipped_bit_gives_no_other_value(tmp_path: Path) -> None:
    values = {bytes([5]) + key(i)[1:]: b"value %d" % i for i in range(4)}
    Packs(tmp_path).write(values)
    for path in (tmp_path / "05.pack", tmp_path / "05.index"):
        whole = path.read_bytes()
        for bit in range(0, 8 * len(whole), 5):  # reaches each bit of a byte
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            packs, wrong = Packs(tmp_path), 0
            for name, value in values.items():
                try:
                    found = packs.read(name)
                except Damaged:
                    found = None
                assert found in (None, value)
                wrong += found is None
            assert wrong == 1, (path.name, bit)
        path.write_bytes(whole)


def test_a_folder_that_is_deleted_is_begun_again(tmp_path: Path) -> None:
    packs = Packs(tmp_path / "packs")
    packs.write(items(0, 300))
    require(packs, items(0, 300))
    shutil.rmtree(tmp_path / "packs")
    with pytest.raises(OSError, match="index"):
        packs.read(key(1))
    packs.write(items(0, 20))
    require(packs, items(0, 20))


def test_memory_is_twelve_bytes_for_each_entry(tmp_path: Path) -> None:
    """Written by one process. If there are ten million values, a pack has 40,000 entries."""
    entries = np.zeros(40_000, ENTRY)
    keys = np.random.default_rng(0).integers(0, 256, (40_000, 16), dtype=np.uint8)
    keys[:, 0] = 5
    entries["key"] = keys.view("V16")[:, 0]
    entries["length"] = 0
    entries["checksum"] = [module._checksum(k.tobytes(), b"") for k in keys]
    (tmp_path / "05.index").write_bytes(entries.tobytes())
    (tmp_path / "05.pack").write_bytes(b"")
    packs = Packs(tmp_path)
    assert all(packs.read(k.tobytes()) == b"" for k in keys[::400])
    (index,) = packs._indices.values()
    assert index.prefixes.nbytes + index.rows.nbytes == 12 * 40_000
