"""Sources of datasets: published checksums, archives, and faults of both."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from arvid.cli import main
from arvid.contracts import UserError
from arvid.data.prepare.facts import DATASETS
from arvid.data.prepare.sources import ARCHIVES, folder_with, unpacked


def test_published_checksums_are_digests() -> None:
    lengths = {"md5": 32, "sha256": 64}
    for remote in (remote for facts in DATASETS for remote in facts.remotes):
        if remote.checksum is not None:
            algorithm, _, digest = remote.checksum.partition(":")
            assert len(bytes.fromhex(digest)) * 2 == lengths[algorithm], remote.url


@pytest.mark.parametrize("ending", [ending for ending in ARCHIVES if ending != ".rar"])
def test_archives_that_cannot_be_read_are_named(ending: str, tmp_path: Path) -> None:
    archive = tmp_path / f"UCF101{ending}"
    archive.write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpacked(archive, tmp_path / "out")
    assert not list((tmp_path / "out/unpacked").iterdir())


def test_archives_of_one_stem_are_all_unpacked(tmp_path: Path) -> None:
    for name in ("k600.train.zip", "k600.val.zip", "other.v1.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr(f"of-{name}.mp4", "")
    folder = unpacked(tmp_path, tmp_path / "out")
    found = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*"))
    assert found == [
        "k600.train.zip/of-k600.train.zip.mp4",
        "k600.val.zip/of-k600.val.zip.mp4",
        "other/of-other.v1.zip.mp4",
    ]


def test_an_encrypted_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.mp4", "content")
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag of encryption, in the file's header and in the directory
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip cannot be unpacked into .*password required"):
        unpacked(path, tmp_path / "out")


def test_what_a_killed_process_unpacked_is_no_source(tmp_path: Path) -> None:
    for name in (".unpacking-x", "dmlab"):
        for split in ("train", "test"):
            (tmp_path / name / split).mkdir(parents=True)
    assert folder_with(tmp_path, "train", "test") == tmp_path / "dmlab"


def test_rar_without_a_program_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "UCF101.rar").write_bytes(b"Rar!")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="none of bsdtar, unrar, 7z is installed"):
        unpacked(tmp_path / "UCF101.rar", tmp_path / "out")


def test_rar_by_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that writes its arguments replaces unrar."""
    program = tmp_path / "unrar"
    program.write_text('#!/bin/sh\necho "$1 $3" > "$4/arguments.txt"\n')
    program.chmod(0o755)
    archive = tmp_path / "UCF101.rar"
    archive.write_bytes(b"Rar!")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = unpacked(archive, tmp_path / "out")
    assert (found / "UCF101/arguments.txt").read_text() == f"x {archive}\n"


@pytest.mark.parametrize(
    ("dataset", "files", "message"),
    [
        ("ucf101", {"a.mp4": b""}, "holds no videos"),
        ("kinetics600", {"a.mp4": b""}, "holds no train.csv"),
        ("kinetics600", {"a.mp4": b"", "train.csv": b"label,id\nx,y\n"}, "has no column"),
        ("moving-mnist", {"a.txt": b""}, "holds neither train-images"),
        ("moving-mnist", {"train-images-idx3-ubyte": b"\0\0\x08\x01"}, "is no idx file"),
        ("moving-mnist", {"mnist.npz": b"PK"}, "is no copy of MNIST"),
        ("bair", {"bair.tar": b"no archive"}, "cannot be read"),
        ("sky", {"a.mp4": b""}, "holds no videos"),
        ("folder", {"a.mp4": b""}, "None of 1 clips"),
    ],
)
def test_sources_of_something_else(
    dataset: str,
    files: dict[str, bytes],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name, content in files.items():
        (source / name).write_bytes(content)
    assert main(["data", dataset, str(tmp_path / "out"), "--source", str(source)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out/dataset.json").exists()


@pytest.mark.parametrize("dataset", [facts.name for facts in DATASETS])
def test_sources_that_are_not_there(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", dataset, str(tmp_path / "out"), "--source", str(tmp_path / "no")]) == 2
    assert str(tmp_path / "no") in capsys.readouterr().err
