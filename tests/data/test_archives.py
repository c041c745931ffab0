"""WebDataset archives and folders of the Hugging Face hub."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from arvid import registry
from arvid.contracts import UserError
from arvid.data import _unpacked
from arvid.data.clips import ClipSpec
from arvid.data.huggingface import HuggingFaceVideos
from arvid.data.video import write_video
from arvid.data.webdataset import WebDataset, expand_braces, read_archive

CLIP = ClipSpec(num_frames=4, size=16, window="start")


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """Files of two videos with grey levels 40 and 120."""
    folder = tmp_path_factory.mktemp("videos")
    found = {}
    for shade in (40, 120):
        write_video(folder / "x.mp4", np.full((6, 16, 16, 3), shade, np.uint8), 8)
        found[shade] = (folder / "x.mp4").read_bytes()
    return found


def write_tar(path: Path, files: Mapping[str, bytes | str], mode: Any = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def shade(video: np.ndarray) -> float:
    return round(float(video.mean()), -1)


@pytest.fixture
def shards(contents: dict[int, bytes], tmp_path: Path) -> Path:
    write_tar(
        tmp_path / "s" / "shard-00.tar",
        {
            "000.mp4": contents[40],
            "000.txt": "hello, you\n",
            "000.cls": "3",
            "001.json": json.dumps({"caption": "bye", "fps": 16, "meta": {"x": 1}}),
            "001.MP4": contents[120],
            "002.txt": "no video",
        },
    )
    write_tar(tmp_path / "s" / "shard-01.tar", {"in/000.v1.mp4": contents[120]})
    return tmp_path / "s"


def test_samples_of_archives(shards: Path) -> None:
    dataset = WebDataset(str(shards), CLIP)
    seen = [(c.name, c.caption, c.label, c.fps, shade(c.video)) for c in dataset]
    assert seen == [
        ("shard-00/000.mp4", "hello, you", 3, 8, 40),
        ("shard-00/001.mp4", "bye", None, 16, 120),
        ("in/000.mp4", "", None, 8, 120),
    ]
    pattern = WebDataset(f"{shards}/shard-{{00..01}}.tar", CLIP)
    assert pattern.fingerprint() == dataset.fingerprint()
    assert len(WebDataset(f"{shards}/*-01.tar", CLIP)) == 1


def test_archives_are_unpacked_once(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = WebDataset(str(shards), CLIP).fingerprint()
    monkeypatch.setattr("arvid.data.webdataset.tarfile.open", lambda _: pytest.fail("read again"))
    assert WebDataset(str(shards), CLIP).fingerprint() == first


def test_braces() -> None:
    assert expand_braces("a{08..10}.tar") == ["a08.tar", "a09.tar", "a10.tar"]
    assert expand_braces("{0..1}/{2..3}") == ["0/2", "0/3", "1/2", "1/3"]


def test_bad_archives_are_told(tmp_path: Path, contents: dict[int, bytes], own_cache: Path) -> None:
    with pytest.raises(UserError, match="there is no tar archive"):
        WebDataset(str(tmp_path / "absent.tar"), CLIP)
    write_tar(tmp_path / "out.tar", {"../../x.mp4": contents[40]})
    with pytest.raises(UserError, match="leads out of the archive"):
        WebDataset(str(tmp_path / "out.tar"), CLIP)
    write_tar(tmp_path / "json.tar", {"x.mp4": contents[40], "x.json": "{oops"})
    with pytest.raises(UserError, match="the text files of x cannot be read"):
        WebDataset(str(tmp_path / "json.tar"), CLIP)
    (tmp_path / "text.tar").write_text("no archive")
    with pytest.raises(UserError, match="is no tar archive"):
        WebDataset(str(tmp_path / "text.tar"), CLIP)
    write_tar(tmp_path / "none.tar", {"x.txt": "no video"})
    with pytest.raises(UserError, match="lists no video"):
        WebDataset(str(tmp_path / "none.tar"), CLIP)
    assert not list((own_cache / "unpacked").glob(".unpacking-*"))


def seen(dataset: WebDataset) -> list[tuple[str, str, float]]:
    return [(c.name, c.caption, shade(c.video)) for c in dataset]


def test_files_of_a_sample_need_not_be_adjacent(tmp_path: Path, contents: dict[int, bytes]) -> None:
    """Earlier versions lost captions that did not follow their video."""
    files = {"a.txt": "A", "b.mp4": contents[40], "a.mp4": contents[120], "b.txt": "B"}
    write_tar(tmp_path / "x.tar", files)
    assert seen(WebDataset(str(tmp_path), CLIP)) == [("x/a.mp4", "A", 120), ("x/b.mp4", "B", 40)]


def test_what_archives_leave_out_is_counted(
    tmp_path: Path, contents: dict[int, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    files = {
        "v.1.mp4": contents[40],
        "v.2.mp4": contents[120],
        "._v.mp4": b"macOS writes these",
        "b\udcff.mp4": contents[40],
        "alone.txt": "x",
    }
    write_tar(tmp_path / "x.tar", files)
    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("v.1.mp4"), io.BytesIO())
    assert seen(WebDataset(str(tmp_path), CLIP)) == [("x/v.mp4", "", 40)]
    assert (
        "x.tar: left out by reason: 1 files with the name of an earlier file, "
        "1 further videos of a sample, 1 names that are not UTF-8 (rename them), "
        "1 samples without a video"
    ) in caplog.text


def test_links_in_archives(
    tmp_path: Path, contents: dict[int, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """tar stores the second name of a file as a hard link."""
    write_tar(tmp_path / "x.tar", {"a.mp4": contents[40]})
    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        for name, kind, target in (
            ("hard.mp4", tarfile.LNKTYPE, "a.mp4"),
            ("soft.mp4", tarfile.SYMTYPE, "a.mp4"),
            ("out.mp4", tarfile.SYMTYPE, "/etc/passwd"),
            ("self.mp4", tarfile.SYMTYPE, "self.mp4"),
            ("one.mp4", tarfile.SYMTYPE, "two.txt"),
            ("two.txt", tarfile.SYMTYPE, "one.mp4"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    found = seen(WebDataset(str(tmp_path), CLIP))
    assert found == [(f"x/{name}.mp4", "", 40) for name in ("a", "hard", "soft")]
    assert "3 links to no file of the archive" in caplog.text


def test_names_that_no_file_can_have(tmp_path: Path, contents: dict[int, bytes]) -> None:
    """One name is a prompt and too long; one video is in a folder with the name of another video."""
    names = ["p" * 300 + ".mp4", "a.mp4", "a.mp4/b.mp4"]
    write_tar(tmp_path / "x.tar", {**dict.fromkeys(names, contents[40]), f"{'p' * 300}.txt": "hi"})
    found = seen(WebDataset(str(tmp_path), CLIP))
    assert [(caption, level) for _, caption, level in found] == [("hi", 40), ("", 40), ("", 40)]
    assert found[1][0] == "x/a.mp4"


def test_names_of_windows(tmp_path: Path, contents: dict[int, bytes]) -> None:
    names = {"in.v1\\a.mp4": contents[40], "in.v1\\a.txt": "\ufeffA", "in.v1\\b.mp4": contents[120]}
    write_tar(tmp_path / "x.tar", names)
    found = seen(WebDataset(str(tmp_path / "x.tar"), CLIP))
    assert found == [("in.v1/a.mp4", "A", 40), ("in.v1/b.mp4", "", 120)]
    videos = [{"bytes": contents[40], "path": path} for path in ("in\\a.mp4", "z\0.mp4")]
    pa.parquet.write_table(pa.table({"video": videos}), tmp_path / "t.parquet")
    first, second = HuggingFaceVideos(tmp_path, CLIP)
    assert (first.name, shade(first.video)) == ("t/00000000-a.mp4", 40)
    assert (Path(second.name).suffix, shade(second.video)) == (".mp4", 40)


def test_compressed_archives_are_decompressed_once(
    tmp_path: Path, contents: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts of a sample lie before and behind its video, and going back reads from the start."""
    files = {
        f"{i}.{ending}": content
        for ending in ("txt", "mp4", "json")
        for i in range(4)
        for content in (contents[40] if ending == "mp4" else "{}",)
    }
    read: list[int] = []

    class Counted(gzip.GzipFile):
        def read(self, size: int | None = -1) -> bytes:
            content = super().read(size)
            read.append(len(content))
            return content

        def rewind(self) -> None:
            raise AssertionError("read from its start again")

    monkeypatch.setattr(gzip, "GzipFile", Counted)
    for mode, ending in (("w", "tar"), ("w:gz", "tgz"), ("w:bz2", "tar.bz2"), ("w:xz", "tar.xz")):
        write_tar(tmp_path / f"x.{ending}", files, mode)
        samples = list(read_archive(tmp_path / f"x.{ending}"))
        assert [sample.name for sample in samples] == [f"{i}.mp4" for i in range(4)]
        assert {sample.content for sample in samples} == {contents[40]}
    assert sum(read) <= 2 * (tmp_path / "x.tar").stat().st_size


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
def test_damaged_compressed_archives_are_named(
    tmp_path: Path, contents: dict[int, bytes], ending: str
) -> None:
    path = tmp_path / f"x.tar.{ending}"
    write_tar(path, {"a.mp4": contents[40]}, f"w:{ending}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.tar\.{ending} is no tar archive, or truncated"):
        WebDataset(str(path), CLIP)


def test_unpacking_begins_anew_after_a_kill_and_with_another_version(
    shards: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = _unpacked.unpack([shards / "shard-01.tar"], read_archive)[0].path.parent
    killed = left.rename(left.with_name(f".unpacking-{left.name}"))
    (killed / "rest.mp4").write_bytes(b"half")
    assert len(WebDataset(str(shards / "shard-01.tar"), CLIP)) == 1
    assert not killed.exists()
    assert sorted(path.name for path in left.iterdir()) == ["index.jsonl", "shard-01"]
    monkeypatch.setattr(_unpacked, "_VERSION", 3)
    assert _unpacked.unpack([shards / "shard-01.tar"], read_archive)[0].path.parent != left


def test_lists_as_captions_are_refused(tmp_path: Path, contents: dict[int, bytes]) -> None:
    row = {"caption": ["x", "y"], "meta": {"x": 1}}
    write_tar(tmp_path / "x.tar", {"a.mp4": contents[40], "a.json": json.dumps(row)})
    with pytest.raises(UserError, match=r"x\.tar, line 1: caption must be text, got \['x', 'y'\]"):
        WebDataset(str(tmp_path), CLIP)


def test_archives_of_a_folder_and_of_a_pattern(
    shards: Path, contents: dict[int, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(shards / "z.TAR.GZ", "w:gz") as archive:
        info = tarfile.TarInfo("k.mp4")
        info.size = len(contents[40])
        archive.addfile(info, io.BytesIO(contents[40]))
    assert len(WebDataset(str(shards), CLIP)) == 4
    assert len(WebDataset(f"{shards}/shard-{{00..03}}.tar", CLIP)) == 3
    assert f"2 archives do not exist: {shards}/shard-02.tar, {shards}/shard-03.tar" in caplog.text


@pytest.fixture
def hub(tmp_path: Path, contents: dict[int, bytes]) -> Path:
    """A folder with a metadata file for each of two splits."""
    for part, level in (("train", 40), ("test", 120)):
        folder = tmp_path / "hub" / part
        (folder / "clips").mkdir(parents=True)
        (folder / "clips" / "0.mp4").write_bytes(contents[level])
        line = {"file_name": "clips/0.mp4", "text": f"for {part}", "label": part}
        (folder / "metadata.jsonl").write_text(json.dumps(line))
    return tmp_path / "hub"


def test_folders_with_metadata(hub: Path) -> None:
    dataset = HuggingFaceVideos(hub, CLIP)
    assert dataset.classes == ("test", "train")
    assert [(c.name, c.caption, c.label, shade(c.video)) for c in dataset] == [
        ("test/clips/0.mp4", "for test", 0, 120),
        ("train/clips/0.mp4", "for train", 1, 40),
    ]
    assert [c.caption for c in HuggingFaceVideos(hub, CLIP, part="train")] == ["for train"]
    with pytest.raises(UserError, match="of the part 'val'"):
        HuggingFaceVideos(hub, CLIP, part="val")
    with pytest.raises(UserError, match=r"there is no metadata\.jsonl"):
        HuggingFaceVideos(hub / "absent", CLIP)


def test_tables_with_videos_inside(tmp_path: Path, contents: dict[int, bytes]) -> None:
    for part, level in (("train", 40), ("test", 120)):
        table = pa.table(
            {
                "video": [{"bytes": contents[level], "path": "a.mp4"}, None],
                "caption": [f"for {part}", "absent"],
                "vector": [[1.0], [2.0]],
            }
        )
        (tmp_path / "data").mkdir(exist_ok=True)
        pa.parquet.write_table(table, tmp_path / "data" / f"{part}-00000-of-00001.parquet")
    dataset = HuggingFaceVideos(tmp_path, CLIP)
    assert [(c.caption, shade(c.video)) for c in dataset] == [("for test", 120), ("for train", 40)]
    assert dataset[0].name == "test-00000-of-00001/00000000-a.mp4"
    assert [c.caption for c in HuggingFaceVideos(tmp_path, CLIP, part="train")] == ["for train"]


def write_table(folder: Path, **columns: Any) -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table(columns), folder / "data" / "train.PARQUET")
    return folder


def test_the_column_of_videos_among_others(
    tmp_path: Path, contents: dict[int, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Earlier versions took pictures or sound in an earlier column for the videos."""
    picture, video = ([{"bytes": data, "path": None}] for data in (b"x", contents[40]))
    for number, (name, values) in enumerate((("mp4", video), ("video", [contents[40]]))):
        root = write_table(tmp_path / str(number), image=picture, **{name: values}, json=[{"x": 1}])
        assert [shade(c.video) for c in HuggingFaceVideos(root, CLIP)] == [40]
        assert "these columns are not read: 'image', 'json'" in caplog.text
        caplog.clear()
    root = write_table(tmp_path / "listed", audio=picture, video=["x.mp4"])
    (root / "data" / "x.mp4").write_bytes(contents[120])
    assert [(c.name, shade(c.video)) for c in HuggingFaceVideos(root, CLIP)] == [
        ("data/x.mp4", 120)
    ]


def test_values_beside_videos(
    tmp_path: Path, contents: dict[int, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Earlier versions lost values that JSON has no type for."""
    root = write_table(
        tmp_path,
        video=[contents[40], None],
        label=[Decimal("2"), None],
        caption=[b"a dog", None],
        start=[datetime.timedelta(seconds=0.25), None],
    )
    (clip,) = HuggingFaceVideos(root, CLIP)
    assert (clip.caption, clip.label) == ("a dog", 2)
    assert "@0.25-" in clip.name
    assert "left out by reason: 1 rows without a video" in caplog.text


def test_they_have_names_of_their_own() -> None:
    assert registry.get("datasets", "webdataset") is WebDataset
    assert registry.get("datasets", "huggingface_videos") is HuggingFaceVideos
