"""Unusual manifests: other column types, other spellings of paths."""

from __future__ import annotations

import datetime
import json
import shutil
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from arvid.contracts import UserError
from arvid.data.clips import ClipSpec, clip_indices
from arvid.data.manifest import VideoManifest, read_manifest
from arvid.data.video import probe_video, write_video

CLIP = ClipSpec(num_frames=5, size=16, window="start")
PATHS = ["a.mp4", "c.mp4"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.mp4 and c.mp4: 40 frames at 8 fps. The grey level is 4 times the index of the frame."""
    root = tmp_path_factory.mktemp("videos")
    frames = np.zeros((40, 16, 16, 3), np.uint8)
    frames += (40 + 4 * np.arange(40, dtype=np.uint8))[:, None, None, None]
    for name in PATHS:
        write_video(root / name, frames, 8)
    return root


def write(root: Path, text: str, name: str = "m.csv") -> Path:
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def parquet(root: Path, **columns: Any) -> Path:
    pa.parquet.write_table(pa.table({"path": PATHS, **columns}), root / "m.parquet")
    return root / "m.parquet"


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()),
        *(pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())),
    ],
    ids=str,
)
def test_all_types_of_text_are_text(videos: Path, kind: pa.DataType) -> None:
    def column(*values: str | None) -> pa.Array:
        if pa.types.is_dictionary(kind):
            return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
        return pa.array(values, pa.string()).cast(kind)

    path = parquet(
        videos, path=column(*PATHS), caption=column("ä dog", None), label=column("run", "box")
    )
    found = [(e.name, e.caption, e.label) for e in read_manifest(path)]
    assert found == [("a.mp4", "ä dog", 1), ("c.mp4", "", 0)]


def test_bytes_of_videos_are_no_paths(videos: Path) -> None:
    with pytest.raises(UserError, match="videos lie inside of the table"):
        read_manifest(parquet(videos, path=[b"\x00\xff\xfe", b"\xff"]))


@pytest.mark.parametrize(
    "start",
    [
        pa.array([Decimal("1.5"), None]),
        pa.array([datetime.timedelta(seconds=1.5), None]),
        pa.array([1500, None], pa.duration("ms")),
        pa.array([datetime.time(0, 0, 1, 500_000), None]),
        pa.array([1500, None], pa.time32("ms")),
        pa.array(["1.5", None], pa.string_view()),
        pa.array([1.5, None], pa.float16()),
        pa.array([1.5, None]).dictionary_encode(),
    ],
    ids=lambda values: str(values.type),
)
def test_all_types_of_seconds_are_seconds(videos: Path, start: pa.Array) -> None:
    """Earlier, a part that was not understood silently became the whole file."""
    entries = read_manifest(parquet(videos, start=start))
    assert [entry.start for entry in entries] == [1.5, None]


@pytest.mark.parametrize("name", ["start", "end"])
@pytest.mark.parametrize("values", [[True, False], [[1.0], [2.0]], [{"s": 1}, {"s": 2}]])
def test_ends_of_parts_that_are_no_seconds_are_refused(
    videos: Path, name: str, values: list[Any]
) -> None:
    with pytest.raises(UserError, match=f"line 1: {name} must be a number"):
        read_manifest(parquet(videos, **{name: values}))


@pytest.mark.parametrize(
    "label",
    [
        pa.array([Decimal("2"), None]),
        pa.array([2, None], pa.float16()),
        pa.array([2, None], pa.uint64()),
    ],
    ids=lambda values: str(values.type),
)
def test_all_types_of_numbers_are_labels(videos: Path, label: pa.Array) -> None:
    assert [entry.label for entry in read_manifest(parquet(videos, label=label))] == [2, None]


@pytest.mark.parametrize("label", ["1e3", "1.0e0", "-0.0", ".5", "+1.5"])
def test_numbers_that_are_no_labels(videos: Path, label: str) -> None:
    path = write(videos, f"path,label\na.mp4,{label}\n")
    with pytest.raises(UserError, match="line 2: label must be a name or a whole number"):
        read_manifest(path)


def test_true_and_false_are_no_labels(videos: Path) -> None:
    with pytest.raises(UserError, match="line 1: label must be a name or a whole number"):
        read_manifest(parquet(videos, label=[True, False]))


@pytest.mark.parametrize("column", ["num_frames", "width", "height"])
@pytest.mark.parametrize("value", ["3000000000", "1e30", "inf"])
def test_absurd_sizes_are_unknown(videos: Path, column: str, value: str) -> None:
    dataset = VideoManifest(write(videos, f"path,fps,{column}\na.mp4,8,{value}\n"), CLIP)
    assert first_frame(dataset[0]) == 0


def first_frame(clip: Any) -> int:
    return round((clip.video[0].mean() - 40) / 4)


@pytest.mark.parametrize("caption", [["a dog", "two dogs"], [], {"en": "a dog"}, 5])
def test_captions_that_are_no_text_are_refused(videos: Path, caption: object) -> None:
    line = json.dumps({"path": "a.mp4", "caption": caption})
    advice = "Write a row for each" if isinstance(caption, list) else "got"
    with pytest.raises(UserError, match=f"line 1: caption must be text.*{advice}"):
        read_manifest(write(videos, line, "m.jsonl"))


@pytest.mark.parametrize("column", ["path", "caption", "label"])
def test_halves_of_characters_are_named(videos: Path, column: str) -> None:
    good, bad = {"path": "a.mp4", "caption": "😀"}, {"path": "a.mp4", column: "\ud83d"}
    with pytest.raises(UserError, match=f"line 2: {column} holds half of a character"):
        read_manifest(write(videos, f"{json.dumps(good)}\n{json.dumps(bad)}\n", "m.jsonl"))


@pytest.mark.parametrize("there", ["NFC", "NFD"])
@pytest.mark.parametrize("spaces", ["", "  "])
def test_other_spellings_of_paths_are_found(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, there: str, spaces: str
) -> None:
    """macOS writes an accented letter as two characters."""
    on_disk = unicodedata.normalize(there, "Tänzè/é.mp4")
    other = unicodedata.normalize("NFD" if there == "NFC" else "NFC", "Tänzè/é.mp4")
    for name in (on_disk, "plain.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(videos / "a.mp4", tmp_path / name)
    listed = f"path,start\n{other}{spaces},1\nplain.mp4,0\n{other}{spaces},2\nabsent é.mp4,\n"
    dataset = VideoManifest(write(tmp_path, listed), CLIP)
    assert [first_frame(clip) for clip in dataset] == [8, 0, 16]
    assert "1 files have another spelling on disk" in caplog.text
    assert dataset.missing == ("absent é.mp4",)
    stem = f"{other}{spaces}".rpartition(".")[0]
    assert dataset[0].name.startswith(f"{stem}@1"), "names stay, and so do splits"


@pytest.mark.parametrize("path", ["50%20 #?&.mp4", "C:\\clips\\a.mp4", "\\\\host\\share\\a.mp4"])
def test_paths_with_marks(videos: Path, tmp_path: Path, path: str) -> None:
    """Names are not URLs. A path on a Windows disk is a missing file on other systems."""
    shutil.copy(videos / "a.mp4", tmp_path / "50%20 #?&.mp4")
    shutil.copy(videos / "a.mp4", tmp_path / "a.mp4")
    dataset = VideoManifest(write(tmp_path, f"path\n{path}\na.mp4\n"), CLIP)
    assert len(dataset) == (1 if "\\" in path else 2)
    assert len(dataset.missing) == 2 - len(dataset)


@pytest.mark.parametrize("stated", ["", ",fps,num_frames"])
def test_a_folder_without_pictures_is_broken(videos: Path, tmp_path: Path, stated: str) -> None:
    shutil.copy(videos / "a.mp4", tmp_path / "a.mp4")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").touch()
    values = ",8,40" if stated else ""
    listed = f"path{stated}\nfolder{values}\na.mp4{values}\n"
    dataset = VideoManifest(write(tmp_path, listed), CLIP)
    assert dataset.broken == {"folder": "it is a folder without pictures"}
    assert [clip.name for clip in dataset] == ["a.mp4"]
    assert dataset.fingerprint() != dataset.earlier_fingerprint()


@pytest.mark.parametrize("short", ["drop", "pad"])
def test_parts_of_a_file_whose_rate_varies(shared: Path, tmp_path: Path, short: Any) -> None:
    """A part counts as long enough exactly if a clip can be cut from it."""
    shutil.copy(shared / "faults" / "vfr" / "vfr.mp4", tmp_path / "v.mp4")
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 3.2, 200).round(3)
    end = start + rng.uniform(0.01, 2, 200).round(3)
    rows = "".join(f"v.mp4,{a},{b}\n" for a, b in zip(start, end, strict=True))
    path = write(tmp_path, f"path,start,end\n{rows}v.mp4,,\n")
    clip = ClipSpec(num_frames=6, size=16, fps=5, window="start", short=short)
    probe = probe_video(tmp_path / "v.mp4")
    assert probe.times is not None
    meant = []
    for entry in read_manifest(path):
        first, count = entry.section(probe)
        times = probe.times[first : first + count]
        if clip_indices(count, probe.fps, clip, times=times) is not None:
            meant.append(entry.name)
    dataset = VideoManifest(path, clip)
    assert [dataset.clip_name(i) for i in range(len(dataset))] == meant
    assert 20 < len(meant) < 201


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path,caption\na.mp4,a dog\n", "utf-16"),
        ("path,caption\na.mp4,a dog\n", "utf-16-le"),
        ("path,caption\na.mp4,é\n", "cp1252"),
        ("path,caption\n" + "c.mp4,x\n" * 3000 + "a.mp4,é\n", "latin-1"),
    ],
)
def test_other_encodings_are_refused(videos: Path, text: str, encoding: str) -> None:
    (videos / "m.csv").write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match="Save it as UTF-8"):
        read_manifest(videos / "m.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sep=;\npath;caption\na.mp4;x\n", "The table has 'sep=', ''"),
        ("path|caption\na.mp4|x\n", r"The table has 'path\|caption'"),
        ("a.mp4,x\nc.mp4,y\n", r"The table has 'a\.mp4', 'x'\. Rename"),
        ("caption,score\nx,1\n", "The table has 'caption', 'score'"),
    ],
)
def test_columns_without_a_path_are_named(videos: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=f"line 2: there is no path.*{said}"):
        read_manifest(write(videos, text))


def test_the_delimiter_gives_a_path(videos: Path) -> None:
    path = write(videos, "path;text;what, else;label\na.mp4;hi, you;x;1\n")
    assert [(e.name, e.caption, e.label) for e in read_manifest(path)] == [("a.mp4", "hi, you", 1)]


def test_columns_without_a_name(videos: Path) -> None:
    """Excel writes the empty columns of a sheet."""
    assert [e.caption for e in read_manifest(write(videos, "path,text,,\na.mp4,x,,\n"))] == ["x"]
    assert [e.caption for e in read_manifest(write(videos, "path, text,,\na.mp4, x,,\n"))] == ["x"]


def test_an_open_quote_swallows_no_rows(videos: Path) -> None:
    with pytest.raises(UserError, match="line 3: this is not CSV"):
        read_manifest(write(videos, 'path,caption\na.mp4,"abc\nc.mp4,d\n'))
    inches = write(videos, 'path,caption\na.mp4,a 5" knife\nc.mp4,"d"\n')
    assert [e.caption for e in read_manifest(inches)] == ['a 5" knife', "d"]


def test_a_repeated_column_of_a_parquet_file(videos: Path) -> None:
    values = [pa.array(PATHS), pa.array(["x", "y"]), pa.array(["z", "z"])]
    table = videos / "m.parquet"
    pa.parquet.write_table(pa.table(values, names=["path", "text", "text"]), table)
    with pytest.raises(UserError, match="the column 'text' is repeated"):
        read_manifest(table)
    pa.parquet.write_table(pa.table(values, names=["path", "x", "x"]), table)
    assert len(read_manifest(table)) == 2


@pytest.mark.parametrize("start", ["00:00:01:12", "1_0", "1:-2", "0:0:1,5", "1:2:3:4"])
def test_times_of_other_forms_are_refused(videos: Path, start: str) -> None:
    """A time code counts frames after the seconds. Earlier versions read it as minutes."""
    with pytest.raises(UserError, match="line 2: start must be a number"):
        read_manifest(write(videos, f'path,start\na.mp4,"{start}"\n'))


@pytest.mark.parametrize("text", ["0:01.5", "00:00:01.5", " 1.5 ", "0:1.5", "15e-1"])
def test_times_of_known_forms(videos: Path, text: str) -> None:
    entries = read_manifest(write(videos, f'path,start\na.mp4,"{text}"\nc.mp4,0:00:00\n'))
    assert [entry.start for entry in entries] == [1.5, 0]


def test_the_first_column_of_labels_counts(videos: Path) -> None:
    """In earlier versions class names beside class numbers were an error."""
    numbers = write(videos, "path,class_name,label\na.mp4,run,3\nc.mp4,walk,1\n")
    assert [entry.label for entry in read_manifest(numbers)] == [3, 1]
    names = write(videos, "path,label,class\na.mp4,run,-1\nc.mp4,,box\n")
    assert [entry.label for entry in read_manifest(names)] == [1, 0]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_column_may_have_two_meanings(videos: Path, ending: str) -> None:
    path = videos / f"two.{ending}"
    table = {"path": ["a.mp4"], "title": ["cat"]}
    if ending == "parquet":
        pa.parquet.write_table(pa.table(table), path)
    else:
        path.write_text(
            '{"path": "a.mp4", "title": "cat"}' if ending == "jsonl" else "path,title\na.mp4,cat\n"
        )
    columns: dict[str, str | None] = {"caption": "title", "label": "title"}
    (clip,) = VideoManifest(path, CLIP, columns=columns)
    assert (clip.caption, clip.label) == ("cat", 0)


@pytest.mark.parametrize(
    ("label", "shown"), [("1e20", r"1e\+20"), ("12345678901234567890123", "1.23")]
)
def test_labels_that_no_integer_holds_are_shown(videos: Path, label: str, shown: str) -> None:
    path = videos / "large.jsonl"
    path.write_text(f'{{"path": "a.mp4", "label": {label}}}')
    with pytest.raises(UserError, match=f"a whole number from 0 to 99999, got {shown}"):
        VideoManifest(path, CLIP)


def test_one_of_two_files_of_one_name_is_unusable(videos: Path, tmp_path: Path) -> None:
    """The name of an absolute path is its last two parts."""
    good, bad = tmp_path / "p" / "clips" / "x.mp4", tmp_path / "q" / "clips" / "x.mp4"
    good.parent.mkdir(parents=True)
    shutil.copy(videos / "a.mp4", good)
    bad.mkdir(parents=True)
    rows = "".join(f"{path},8,40\n" for path in (good, bad))
    dataset = VideoManifest(write(tmp_path, f"path,fps,num_frames\n{rows}"), CLIP)
    assert [clip.name for clip in dataset] == ["clips/x.mp4"]
    assert dataset.broken == {"clips/x.mp4": "it is a folder without pictures"}
