"""Realistic manifests: column names, spellings of unknown values, labels, parts, size."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from arvid.contracts import UserError
from arvid.data import _files, _kept_tables, _survey
from arvid.data._columns import split_fraction
from arvid.data._entries import Entries
from arvid.data._files import _of_split
from arvid.data.clips import ClipSpec
from arvid.data.manifest import VideoManifest, read_manifest
from arvid.data.video import VideoError, write_video

CLIP = ClipSpec(num_frames=5, size=16, window="start")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clips/a.mp4 and clips/c.mp4: 40 frames at 8 fps. The grey level is 4 times the index of the frame."""
    root = tmp_path_factory.mktemp("videos")
    frames = np.zeros((40, 16, 16, 3), np.uint8)
    frames += (40 + 4 * np.arange(40, dtype=np.uint8))[:, None, None, None]
    for name in ("a", "c"):
        write_video(root / "clips" / f"{name}.mp4", frames, 8)
    return root


def write(root: Path, text: str, name: str = "m.csv") -> Path:
    path = root / name
    path.write_text(text, encoding="utf-8")
    return path


def first_frame(clip: Any) -> int:
    return round((clip.video[0].mean() - 40) / 4)


@pytest.mark.parametrize(
    "header",
    [
        "path,caption,label",
        "path, caption, label",
        " Path ,Caption\t, LABEL",
        "video,text,class",
        "file_name,prompt,class_name",
        "filepath,description,label_name",
        "Video Path,sentence,Class-Name",
    ],
)
def test_names_of_columns(videos: Path, header: str) -> None:
    gap = " " if ", " in header else ""
    lines = [header, f"clips/a.mp4,{gap}hello there,{gap}walk", f"clips/c.mp4,{gap}bye,{gap}run"]
    dataset = VideoManifest(write(videos, "\n".join(lines)), CLIP)
    assert dataset.classes == ("run", "walk")
    assert [(c.caption, c.label) for c in dataset] == [("hello there", 1), ("bye", 0)]


def test_quotes_behind_spaces(videos: Path) -> None:
    text = 'path, caption, label\nclips/a.mp4, "one, two", 1\n'
    assert VideoManifest(write(videos, text), CLIP)[0].caption == "one, two"


@pytest.mark.parametrize(("mark", "name"), [(";", "m.csv"), ("\t", "m.csv"), ("\t", "m.tsv")])
def test_other_marks_between_columns(videos: Path, mark: str, name: str) -> None:
    text = f"path{mark}text\nclips/a.mp4{mark}hello, you\n"
    assert VideoManifest(write(videos, text, name), CLIP)[0].caption == "hello, you"


def test_open_sora_webvid_and_hugging_face(videos: Path) -> None:
    sora = "path,text,num_frames,height,width,aspect_ratio,fps\nclips/a.mp4,hello,40,16,16,1.0,8\n"
    webvid = "videoid,contentUrl,duration,page_dir,name\na,http://x/a.mp4,PT5S,clips,hello\n"
    lines = '{"file_name": "clips/a.mp4", "text": "hello"}\n'
    for text, name in ((sora, "m.csv"), (webvid, "m.csv"), (lines, "metadata.jsonl")):
        clip = VideoManifest(write(videos, text, name), CLIP)[0]
        assert (clip.caption, clip.name) == ("hello", "clips/a.mp4")


def test_parquet_is_read_like_text(videos: Path) -> None:
    table = pa.table(
        {
            "video": ["clips/a.mp4", "clips/c.mp4"],
            "caption": pa.array(["hello", None]).dictionary_encode(),
            "label": [2.0, float("nan")],
            "embedding": [[1.0], [2.0]],
        }
    )
    pa.parquet.write_table(table, videos / "m.parquet")
    dataset = VideoManifest(videos / "m.parquet", CLIP)
    assert [(c.caption, c.label) for c in dataset] == [("hello", 2), ("", None)]
    (videos / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read"):
        VideoManifest(videos / "bad.parquet", CLIP)


def test_columns_may_be_named_and_left_unread(videos: Path) -> None:
    path = write(videos, "path,title,label\nclips/a.mp4,hello,x\n")
    clip = VideoManifest(path, CLIP, columns={"caption": "title", "label": None})[0]
    assert (clip.caption, clip.label) == ("hello", None)
    with pytest.raises(UserError, match="'captions' is none of path"):
        VideoManifest(path, CLIP, columns={"captions": "title"})


def test_paths_may_be_relative_to_another_folder(videos: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "path\na.mp4\n")
    assert VideoManifest(path, CLIP, video_root=videos / "clips")[0].name == "a.mp4"


def test_columns_that_are_not_understood_are_named(
    videos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    VideoManifest(write(videos, "path,score,mood\nclips/a.mp4,1,x\n"), CLIP)
    VideoManifest(write(videos, '{"path": "clips/a.mp4", "score": [1]}\n', "m.jsonl"), CLIP)
    assert "columns are not read: 'score', 'mood'" in caplog.text
    assert "columns are not read: 'score'." in caplog.text


@pytest.mark.parametrize(
    "nothing", ["", "nan", "NaN", "null", "None", "<NA>", "N/A", "NA", "#N/A", '"  "', '"\n"']
)
def test_captions_that_are_none(videos: Path, nothing: str) -> None:
    dataset = VideoManifest(write(videos, f"path,text\nclips/a.mp4,{nothing}\n"), CLIP)
    assert (dataset[0].caption, dataset.has_captions) == ("", False)


def test_captions_in_the_other_split_alone_do_not_count(videos: Path) -> None:
    """Text is a condition of the training videos; captions of others do not help."""
    fractions = {name: split_fraction(f"clips/{name}.mp4") for name in "ac"}
    low, high = sorted(fractions, key=lambda name: fractions[name])
    path = write(videos, f"path,caption\nclips/{low}.mp4,x\nclips/{high}.mp4,\n")
    between = sum(fractions.values()) / 2
    for split, meant in (("val", True), ("train", False)):
        dataset = VideoManifest(path, CLIP, split=split, val_fraction=between)
        assert dataset.has_captions == meant


def test_null_and_nan_of_json(videos: Path) -> None:
    lines = [
        {"path": "clips/a.mp4", "caption": None, "label": float("nan")},
        {"path": "clips/c.mp4", "caption": float("nan"), "label": 1.0},
    ]
    path = write(videos, "\n".join(map(json.dumps, lines)), "m.jsonl")
    assert [(c.caption, c.label) for c in VideoManifest(path, CLIP)] == [("", None), ("", 1)]


def test_captions_that_look_like_dates_stay_text(videos: Path) -> None:
    for column in ("caption", "Text"):
        line = json.dumps({"path": "clips/a.mp4", column: "2024-01-02"})
        assert VideoManifest(write(videos, line, "m.jsonl"), CLIP)[0].caption == "2024-01-02"


def test_labels_as_pandas_writes_them(videos: Path) -> None:
    labels = ["0.0", "1.0", "10.0", "", "2.0"]
    rows = "".join(f"clips/a.mp4,{label}\n" for label in labels)
    dataset = VideoManifest(write(videos, f"path,label\n{rows}"), CLIP)
    assert [clip.label for clip in dataset] == [0, 1, 10, None, 2]
    assert dataset.classes == tuple(map(str, range(11)))


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
@pytest.mark.parametrize(
    "label", [-1, "-1", "-2.0", 1.5, "2.5", "1e9", 10**9, "1000000000", 10**30, 1e12]
)
def test_labels_that_are_no_classes_are_refused(videos: Path, label: object, name: str) -> None:
    lines = {
        "m.csv": f"path,label\nclips/a.mp4,5\nclips/c.mp4,{label}\n",
        "m.jsonl": f'\n{{"path": "a", "label": 5}}\n{json.dumps({"path": "c", "label": label})}',
    }
    with pytest.raises(UserError, match="line 3: label must be a name or a whole number from 0"):
        read_manifest(write(videos, lines[name], name))


def test_spaces_around_labels_do_not_count(videos: Path) -> None:
    path = write(videos, "path,label\nclips/a.mp4, 3\nclips/c.mp4,003 \n")
    assert [entry.label for entry in read_manifest(path)] == [3, 3]


@pytest.mark.parametrize(
    "text", ["null", "null\nnull\n", "{}\n", "{}", "1", '"x"', '{"a": 1}\nnull']
)
def test_lines_without_a_video_are_named(videos: Path, text: str) -> None:
    """Arrow crashes the process for a file of nulls alone."""
    with pytest.raises(UserError, match=r"m\.jsonl, line 1: (expected an object|there is no path)"):
        read_manifest(write(videos, text, "m.jsonl"))


def test_many_parts_of_few_files_look_at_each_file_once(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = []
    probe = _survey.probe_video
    monkeypatch.setattr(
        _survey, "probe_video", lambda path, **more: probed.append(path) or probe(path, **more)
    )
    rows = "".join(f"clips/{'ac'[i % 2]}.mp4,{i % 40 / 10}\n" for i in range(1000))
    dataset = VideoManifest(write(videos, f"path,start\n{rows}clips/x.mp4,1\n"), CLIP)
    assert (len(probed), len(dataset), dataset.missing) == (2, 1000, ("clips/x.mp4",))


def test_too_many_names_are_no_classes(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arvid.data._columns.MAX_CLASSES", 10)
    path = write(videos, "path,label\n" + "".join(f"clips/a.mp4,id{i}\n" for i in range(11)))
    with pytest.raises(UserError, match=r"m\.csv: there are more than 10 different labels"):
        read_manifest(path)


def test_names_beside_numbers_are_refused(videos: Path) -> None:
    path = write(videos, "path,label\nclips/a.mp4,walk\nclips/c.mp4,2\n")
    with pytest.raises(UserError, match="partly names"):
        read_manifest(path)


@pytest.mark.parametrize("ends", ["2,3", "2.0,3.0", "0:02,0:00:03", "00:00:02.000,00:00:03.0"])
def test_parts_of_a_video(videos: Path, ends: str) -> None:
    rows = f"clips/a.mp4,{ends}\nclips/a.mp4,3,\nclips/a.mp4,,\nclips/a.mp4,4,4.2\n"
    dataset = VideoManifest(write(videos, f"path,start,end\n{rows}"), CLIP)
    assert [first_frame(clip) for clip in dataset] == [16, 24, 0]
    assert [clip.name for clip in dataset] == ["clips/a@2-3.mp4", "clips/a@3-.mp4", "clips/a.mp4"]
    assert dataset.too_short == ("clips/a@4-4.2.mp4",)
    centre = ClipSpec(num_frames=5, size=16, window="center")
    centred = VideoManifest(write(videos, f"path,start,end\nclips/a.mp4,{ends}\n"), centre)
    assert first_frame(centred[0]) == 17


@pytest.mark.parametrize(("start", "end"), [("3", "2"), ("2", "2"), ("soon", "3")])
def test_parts_that_make_no_sense_are_refused(videos: Path, start: str, end: str) -> None:
    path = write(videos, f"path,start,end\nclips/a.mp4,,\nclips/c.mp4,{start},{end}\n")
    with pytest.raises(UserError, match=r"line 3: (start|end)"):
        read_manifest(path)


def test_what_is_stated_is_not_decoded(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_survey, "probe_video", lambda *_, **__: pytest.fail("decoded"))
    path = write(videos, "path,frames,frame_rate,fps\nclips/a.mp4,40,,8\nclips/c.mp4,4,8/1,\n")
    dataset = VideoManifest(path, ClipSpec(num_frames=5, size=16, fps=4, window="start"))
    assert (len(dataset), dataset.too_short) == (1, ("clips/c.mp4",))
    assert (dataset[0].fps, first_frame(dataset[0])) == (4, 0)


@pytest.mark.parametrize("stated", ["0,8", "nan,8", "-1,8", "40,0", "40,", ","])
def test_what_is_not_stated_is_found_out(videos: Path, stated: str) -> None:
    path = write(videos, f"path,num_frames,fps\nclips/a.mp4,{stated}\n")
    ((_, probe),) = VideoManifest(path, CLIP)._videos
    assert (probe.num_frames, probe.fps) == (40, 8)


def test_a_rate_that_is_stated_alone_is_believed(videos: Path) -> None:
    path = write(videos, "path,fps\nclips/a.mp4,16\n")
    assert VideoManifest(path, CLIP)[0].fps == 16


def test_backslashes(videos: Path) -> None:
    for text, name in (
        ("path,caption\nclips\\a.mp4,hello\n", "m.csv"),
        (json.dumps({"path": "clips\\a.mp4"}), "m.jsonl"),
    ):
        assert [c.name for c in VideoManifest(write(videos, text, name), CLIP)] == ["clips/a.mp4"]


def test_long_names_are_missing(videos: Path, caplog: pytest.LogCaptureFixture) -> None:
    """For example a caption in the path column, also with a zero byte."""
    path = write(videos, f"path\n{'a long caption ' * 30}\nclips/a.mp4\nx\0y.mp4\n")
    dataset = VideoManifest(path, CLIP)
    assert (len(dataset), len(dataset.missing)) == (1, 2)
    assert "2 listed files do not exist" in caplog.text
    with pytest.raises(VideoError, match="no such file"):
        _survey.probe_video(videos / ("x" * 300))


def test_absolute_paths_that_share_their_last_two_parts(videos: Path, tmp_path: Path) -> None:
    absent = tmp_path / "clips" / "a.mp4"
    path = write(videos, f"path\n{videos}/clips/a.mp4\n{absent}\n")
    dataset = VideoManifest(path, CLIP)
    assert ([clip.name for clip in dataset], dataset.missing) == (["clips/a.mp4"], ("clips/a.mp4",))
    with pytest.raises(UserError, match="no video is left of 1: 1 missing"):
        VideoManifest(write(videos, f"path\n{absent}\n"), CLIP)


def test_lines_are_named_in_large_files(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors after the first block of a file, also with values of several lines."""
    monkeypatch.setattr("arvid.data._tables._BLOCK", 1000)
    row = 'clips/a.mp4,"two\nlines",3\n'
    for bad, reason in (("clips/a.mp4,x,-3", "label must be"), ("clips/a.mp4,x", "expected 3")):
        path = write(videos, "path,caption,label\n" + row * 200 + bad + "\n" + row * 100)
        with pytest.raises(UserError, match=f"line 402: {reason}"):
            read_manifest(path)
    line = json.dumps({"path": "clips/a.mp4", "caption": "x"}) + "\n\n"
    for bad, reason in (
        ('{"path": 3}', "the path of a video must be text"),
        ("{oops", "this is not JSON"),
    ):
        with pytest.raises(UserError, match=f"line 401: {reason}"):
            read_manifest(write(videos, line * 200 + bad + "\n" + line, "m.jsonl"))


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_blocks_make_no_difference(
    videos: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows = [{"path": f"clips/{i}.mp4", "text": f"é {i}", "label": f"c{i % 7}"} for i in range(300)]
    text = "\n".join(map(json.dumps, rows))
    if name == "m.csv":
        text = "path,text,label\n" + "\n".join(",".join(row.values()) for row in rows)
    path = write(videos, "\ufeff" + text, name)
    whole = list(read_manifest(path))
    monkeypatch.setattr("arvid.data._tables._BLOCK", 500)
    assert list(read_manifest(path)) == whole
    assert (whole[299].caption, whole[299].label) == ("é 299", 299 % 7)


def test_kinds_of_values_may_differ_from_line_to_line(videos: Path) -> None:
    lines = [
        '{"path": "clips/a.mp4", "label": "1", "x": 1, "fps": 8}',
        '{"path": "clips/c.mp4", "label": 2, "x": [], "fps": "8"}',
        '{"path": "clips/c.mp4", "label": 3.0, "x": {}}',
    ]
    dataset = VideoManifest(write(videos, "\n".join(lines), "m.jsonl"), CLIP)
    assert [clip.label for clip in dataset] == [1, 2, 3]


def test_other_encodings_are_refused(videos: Path) -> None:
    for name in ("m.csv", "m.jsonl"):
        (videos / name).write_bytes('path,caption\na.mp4,"Gr\u00fc\u00dfe"\n'.encode("latin-1"))
        with pytest.raises(UserError):
            read_manifest(videos / name)


@pytest.mark.parametrize(
    ("name", "fraction"),
    [
        ("a.mp4", 0.9016808671489143),
        ("Biking/v_Biking_g01_c02.avi", 0.27078575725232973),
        ("é/ü_g1_c2.webm", 0.09111808625042259),
        ("x_g3", 0.8517749391525887),
    ],
)
def test_splits_stay_as_they_were(name: str, fraction: float) -> None:
    assert split_fraction(name) == fraction
    assert _of_split(np.array(fraction), "val", fraction + 1e-9)
    assert _of_split(np.array(fraction), "train", fraction)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep manifests of any size."""
    monkeypatch.setattr(_kept_tables, "KEPT_FROM", 0)


def test_a_large_manifest_is_read_once(
    videos: Path, kept: None, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(videos, "path,text,label,odd\nclips/a.mp4,hello,x,1\nclips/c.mp4,bye,a,2\n")
    first = read_manifest(path)
    monkeypatch.setattr(_kept_tables.TableReader, "blocks", lambda _: pytest.fail("read again"))
    second = read_manifest(path)
    assert list(first) == list(second)
    assert (second.classes, second.digest) == (("a", "x"), first.digest)
    assert [entry.label for entry in second] == [1, 0]
    assert len(list((own_cache / "manifests").glob("*.arrow"))) == 1


def test_unread_columns_are_named_each_time(
    videos: Path, kept: None, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(videos, "path,odd\nclips/a.mp4,1\n")
    for _ in range(2):
        read_manifest(path)
    assert caplog.text.count("'odd'") == 2


def test_a_changed_manifest_is_read_anew(videos: Path, kept: None) -> None:
    assert read_manifest(write(videos, "path,text\nclips/a.mp4,one\n"))[0].caption == "one"
    assert read_manifest(write(videos, "path,text\nclips/a.mp4,other\n"))[0].caption == "other"


def test_a_bad_manifest_is_not_kept(videos: Path, kept: None, own_cache: Path) -> None:
    path = write(videos, "path,label\nclips/a.mp4,-1\n")
    for _ in range(2):
        with pytest.raises(UserError, match="line 2"):
            read_manifest(path)
    assert not list((own_cache / "manifests").glob("*.arrow"))


def test_a_cache_that_cannot_be_written_is_said(
    videos: Path, kept: None, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_cache.write_text("a file where the folder should be")
    entries = read_manifest(write(videos, "path\nclips/a.mp4\n"))
    assert len(entries) == 1
    assert caplog.text.count("Set ARVID_CACHE") == 1


def _read_in_process(path: Path, results: Any) -> None:
    _kept_tables.KEPT_FROM = 0
    results.put((len(read_manifest(path)), read_manifest(path).digest))


def test_processes_share_one_reading(videos: Path, kept: None, own_cache: Path) -> None:
    path = write(videos, "path\n" + "clips/a.mp4\n" * 20_000)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_read_in_process, args=(path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert len(list((own_cache / "manifests").glob("*.arrow"))) == 1


def test_a_kept_table_travels_as_its_path(videos: Path, kept: None) -> None:
    path = write(videos, "path\n" + "clips/a.mp4\n" * 20_000)
    entries = read_manifest(path)
    sent = pickle.dumps(entries)
    assert len(sent) < 2000
    assert list(pickle.loads(sent)) == list(entries)
    small = Entries.of(list(entries[:3]), ["x"])
    assert list(pickle.loads(pickle.dumps(small))) == list(small)


def test_many_files_that_are_stated_are_not_looked_at(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files, "MANY", 3)
    monkeypatch.setattr(_survey, "probe_video", lambda *_, **__: pytest.fail("decoded"))
    rows = "".join(f"clips/{name}.mp4,40,8,{name}\n" for name in "acxy")
    path = write(videos, f"path,num_frames,fps,text\n{rows}")
    dataset = VideoManifest(path, CLIP)
    assert (len(dataset), dataset.missing) == (4, ())
    assert dataset[1].caption == "c"
    with pytest.raises(VideoError, match="no such file"):
        dataset[2]
    same = VideoManifest(path, CLIP)
    write(videos, f"path,num_frames,fps,text\n{rows}".replace(",y", ",z"))
    assert same.fingerprint() == dataset.fingerprint() != VideoManifest(path, CLIP).fingerprint()
    with pytest.raises(UserError, match="none of its videos seems to exist"):
        VideoManifest(path, CLIP, video_root=videos / "clips")
