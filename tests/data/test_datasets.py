"""Folders and manifests of video files: content, reports, and reproducibility."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arvid import registry
from arvid.contracts import UserError
from arvid.data import _survey
from arvid.data._columns import split_fraction
from arvid.data._files import FileOptions, _of_split
from arvid.data._ledger import Ledger
from arvid.data.clips import ClipSpec
from arvid.data.folder import VideoFolder, class_caption, read_split_list
from arvid.data.manifest import VideoManifest
from arvid.data.video import VideoError, probe_video, write_video
from arvid.data.windows import Windows
from arvid.files import sha256_json
from arvid.training.instantiate import build, parameters

CLIP = ClipSpec(num_frames=5, size=16)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_clip(path: Path, num_frames: int = 12, shade: int = 90) -> None:
    """A video that brightens by 10 per frame, so that a frame shows its index."""
    frames = np.zeros((num_frames, 16, 24, 3), np.uint8)
    frames += (shade + 10 * np.arange(num_frames, dtype=np.uint8))[:, None, None, None]
    write_video(path, frames, 8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "videos"
    for name in ("HandstandPushups", "archery", "YoYo"):
        for number in range(2):
            write_clip(root / name / f"v_{name}_g0{number}_c01.mp4", 12, 60 + 5 * number)
    return root


def test_folder(root: Path) -> None:
    dataset = VideoFolder(root, CLIP)
    assert dataset.classes == ("archery", "HandstandPushups", "YoYo")
    assert len(dataset) == 6
    clip = dataset[5]
    assert clip.video.shape == (5, 16, 16, 3)
    assert (clip.label, clip.caption, clip.motion, clip.fps) == (2, "yo yo", None, 8)
    assert VideoFolder(root, ClipSpec(num_frames=5, size=16, stride=2))[0].fps == 4
    assert clip.name == "YoYo/v_YoYo_g01_c01.mp4"
    assert [len({c.name for c in dataset}), len(list(dataset))] == [6, 6]
    with pytest.raises(IndexError):
        dataset[6]


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("YoYo", "yo yo"),
        ("TVShow", "tv show"),
        ("hand_wave-2", "hand wave 2"),
    ],
)
def test_class_names_in_words(name: str, caption: str) -> None:
    assert class_caption(name) == caption


def test_a_clip_is_a_pure_function_of_seed_and_index(root: Path) -> None:
    one, again, other = (VideoFolder(root, CLIP, clips_per_video=3, seed=s) for s in (0, 0, 1))
    assert len(one) == 18
    backwards = [one[i].video for i in reversed(range(18))][::-1]
    for index, video in enumerate(backwards):
        np.testing.assert_array_equal(video, again[index].video)
    assert any((one[i].video != other[i].video).any() for i in range(18))
    assert one[4].name.endswith("#1")


def test_several_windows_are_spread(root: Path) -> None:
    dataset = VideoFolder(root, CLIP, clips_per_video=2)
    first, second = (dataset[i].video[0].mean() for i in (0, 1))
    assert second > first


def test_half_of_the_clips_are_mirrored_where_that_is_asked(tmp_path: Path) -> None:
    frames = np.zeros((12, 16, 16, 3), np.uint8)
    frames[:, :, :8] = 200
    write_video(tmp_path / "left" / "left.mp4", frames, 8)
    plain, mirrored, again = (
        VideoFolder(tmp_path, CLIP, clips_per_video=32, mirror=mirror)
        for mirror in (False, True, True)
    )
    is_left = [bool(clip.video[0, 0, 2, 0] > 100) for clip in mirrored]
    assert 8 <= sum(is_left) <= 24
    for i, left in enumerate(is_left):
        before = plain[i].video
        np.testing.assert_array_equal(
            mirrored[i].video, before if left else before[:, :, ::-1], strict=True
        )
        np.testing.assert_array_equal(again[i].video, mirrored[i].video)
    assert plain.fingerprint() != mirrored.fingerprint()


def test_frames_of_a_clip_follow_each_other(root: Path) -> None:
    dataset = VideoFolder(root, ClipSpec(num_frames=4, size=16, stride=2, window="center"))
    steps = np.diff(dataset[0].video.mean((1, 2, 3)))
    np.testing.assert_allclose(steps, 20, atol=3)


def test_broken_files_are_named_once_counted_and_skipped(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "YoYo" / "empty.avi").touch()
    (root / "YoYo" / "text.mkv").write_text("no video")
    write_clip(root / "YoYo" / "short.mp4", 3)
    with caplog.at_level(logging.WARNING):
        dataset = VideoFolder(root, CLIP)
        list(dataset)
    assert len(dataset) == 6
    assert set(dataset.broken) == {"YoYo/empty.avi", "YoYo/text.mkv"}
    assert dataset.too_short == ("YoYo/short.mp4",)
    assert caplog.text.count("YoYo/empty.avi: the file is empty (0 bytes)") == 1
    assert "2 broken files" in caplog.text
    assert caplog.text.count("short.mp4") == 1
    with pytest.raises(UserError, match=r"empty\.avi"):
        VideoFolder(root, CLIP, strict=True)


def test_short_videos_may_be_padded(root: Path) -> None:
    write_clip(root / "YoYo" / "short.mp4", 3)
    dataset = VideoFolder(root, ClipSpec(num_frames=5, size=16, short="pad"))
    video = next(c.video for c in dataset if c.name == "YoYo/short.mp4")
    np.testing.assert_array_equal(video[2:], np.stack([video[2]] * 3))


def test_short_videos_may_go_on_in_black(root: Path) -> None:
    write_clip(root / "YoYo" / "short.mp4", 3)
    dataset = VideoFolder(root, ClipSpec(num_frames=5, size=16, short="black"))
    shades = {c.name: c.video.mean((1, 2, 3)) for c in dataset}
    assert (shades["YoYo/short.mp4"] > 0).tolist() == [True, True, True, False, False]
    assert (shades["YoYo/v_YoYo_g00_c01.mp4"] > 0).all()


def test_nothing_left_is_an_error(tmp_path: Path, root: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no videos in class folders"):
        VideoFolder(tmp_path / "nothing")
    with pytest.raises(UserError, match="not a folder"):
        VideoFolder(tmp_path / "absent")
    with pytest.raises(UserError, match="6 too short for 40 frames"):
        VideoFolder(root, ClipSpec(num_frames=40))
    with pytest.raises(UserError, match="split 'val'"):
        VideoFolder(root, CLIP, split="val", val_fraction=0)


def test_files_that_vanish_later_are_an_error(root: Path) -> None:
    dataset = VideoFolder(root, CLIP)
    shutil.rmtree(root / "archery")
    with pytest.raises(VideoError, match="no such file"):
        dataset[0]


@pytest.mark.parametrize(
    "lines",
    [
        "YoYo/v_YoYo_g00_c01.mp4 101\r\nHandStandPushups/v_HandStandPushups_g01_c01.mp4 38\r\n",
        "YoYo/v_YoYo_g00_c01.mp4\r\nHandstandPushups/v_HandStandPushups_g01_c01.mp4\r\n",
        "UCF/a b/YoYo/v_YoYo_g00_c01.mp4\t101\nUCF/HandstandPushups/v_HandStandPushups_g01_c01.mp4\t38\n",
        "\ufeffYoYo\\v_YoYo_g00_c01.mp4 101\n\nHandstandPushups/v_HandstandPushups_g01_c01.mp4 38",
    ],
)
def test_split_lists(root: Path, tmp_path: Path, lines: str) -> None:
    (tmp_path / "list.txt").write_bytes(lines.encode())
    dataset = VideoFolder(root, CLIP, split_list=tmp_path / "list.txt", strict=True)
    assert [(c.label, c.caption) for c in dataset] == [(1, "handstand pushups"), (2, "yo yo")]


def test_accents_of_split_lists(tmp_path: Path) -> None:
    """macOS writes an accented letter as two characters."""
    names = [unicodedata.normalize(form, f"Café/{form}é.mp4") for form in ("NFC", "NFD")]
    for name in names:
        write_video(tmp_path / "root" / name, np.zeros((12, 16, 16, 3), np.uint8), 8)
    other = [
        unicodedata.normalize(form, name) for form, name in zip(("NFD", "NFC"), names, strict=True)
    ]
    (tmp_path / "list.txt").write_text("\n".join(other), encoding="utf-8")
    dataset = VideoFolder(
        tmp_path / "root", ClipSpec(num_frames=2), split_list=tmp_path / "list.txt", strict=True
    )
    assert len(dataset) == 2
    (tmp_path / "list.txt").write_text("A/x.mp4", encoding="utf-16")
    with pytest.raises(UserError, match="Save it as UTF-8"):
        read_split_list(tmp_path / "list.txt")


def test_split_list_problems(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("YoYo/v_YoYo_g00_c01.mp4 1\nYoYo/gone.mp4 1\n")
    assert len(VideoFolder(root, CLIP, split_list=listed)) == 1
    assert "1 listed files do not exist: YoYo/gone.mp4" in caplog.text
    with pytest.raises(UserError, match=r"gone\.mp4"):
        VideoFolder(root, CLIP, split_list=listed, strict=True)
    listed.write_text("Else/where.mp4 1\n")
    with pytest.raises(UserError, match="1 missing"):
        VideoFolder(root, CLIP, split_list=listed)
    listed.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        VideoFolder(root, CLIP, split_list=listed)
    with pytest.raises(UserError, match="cannot be read"):
        VideoFolder(root, CLIP, split_list=tmp_path / "absent.txt")


def test_split_by_hash() -> None:
    names = [f"A/v_A_g{group:02}_c{clip:02}.avi" for group in range(500) for clip in range(1, 4)]
    fractions = np.array([split_fraction(name) for name in names])
    val = set(np.array(names)[_of_split(fractions, "val", 0.2)])
    train = set(np.array(names)[_of_split(fractions, "train", 0.2)])
    assert val | train == set(names)
    assert not val & train
    assert 0.15 < len(val) / len(names) < 0.25
    recordings = [{name.rsplit("_c", 1)[0] for name in part} for part in (val, train)]
    assert not recordings[0] & recordings[1], "a recording is torn apart"


def test_fingerprint_depends_on_content_and_options_only(root: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    original = VideoFolder(root, CLIP).fingerprint()
    assert VideoFolder(moved, CLIP).fingerprint() == original
    write_clip(moved / "YoYo" / "more.mp4")
    changed = [
        VideoFolder(moved, CLIP),
        VideoFolder(root, ClipSpec(num_frames=4, size=16)),
        VideoFolder(root, CLIP, seed=1),
        VideoFolder(root, CLIP, motion=True),
        VideoFolder(root, CLIP, clips_per_video=2),
    ]
    assert len({original, *(dataset.fingerprint() for dataset in changed)}) == 6


def test_a_file_replaced_by_another_of_its_size_changes_the_fingerprint(
    root: Path,
) -> None:
    path = root / "YoYo" / "v_YoYo_g00_c01.mp4"
    before, stat = VideoFolder(root, CLIP).fingerprint(), path.stat()
    content = path.read_bytes()
    os.utime(path)
    assert VideoFolder(root, CLIP).fingerprint() == before
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as `cp -p` and `rsync -t` do
    dataset = VideoFolder(root, CLIP)
    assert dataset.fingerprint() != before
    shutil.rmtree(root)
    assert dataset.fingerprint(), "it is that of the files that the dataset began with"


@pytest.mark.parametrize("size", [0, 10, 2**20, 2**20 + 1, 3 * 2**20 + 5])
def test_the_hash_of_a_content_covers_head_tail_and_blocks(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    hashes = set()
    places = [None, 0, size // 2, size - 1] if size else [None]
    for at in places:
        changed = data.copy()
        if at is not None:
            block = slice(max(0, at - 10**5), at + 10**5) if size > 2**20 else slice(at, at + 1)
            changed[block] ^= 1
        path.write_bytes(changed.tobytes())
        hashes.add(_survey.content_hash(path))
    assert len(hashes) == len(places)
    assert max((start + length for start, length in _survey._parts(size)), default=0) == size


def test_the_fingerprint_of_version_0_1(root: Path) -> None:
    """The value was computed at commit 17cedba. Runs of that version can be resumed."""
    dataset = VideoFolder(root, CLIP)
    files = [[e.name, e.path.stat().st_size, e.caption, e.label] for e, _ in dataset._videos]
    options = {
        "clip": {**vars(CLIP)},
        **{"clips_per_video": 1, "seed": 0, "mirror": False, "motion": False},
    }
    then = {"version": 1, "files": files, "classes": dataset.classes, **options}
    assert dataset.earlier_fingerprint() == sha256_json(then)
    assert dataset.earlier_fingerprint() != dataset.fingerprint()
    windows = Windows(dataset, num_frames=3)
    assert windows.earlier_fingerprint() == sha256_json(
        ["windows", dataset.earlier_fingerprint(), 3, 0]
    )


def test_clips_that_were_others_then_have_no_earlier_fingerprint(shared: Path) -> None:
    mirrored = VideoFolder(shared / "faults", CLIP)
    assert mirrored.earlier_fingerprint() is None


def test_a_file_that_is_being_written_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "YoYo" / "v_YoYo_g00_c01.mp4"

    def probe(at: Path, **options: Any) -> Any:
        found = probe_video(at, **options)
        if at == path:
            with path.open("ab") as file:
                file.write(b"more")
        return found

    monkeypatch.setattr(_survey, "probe_video", probe)
    dataset = VideoFolder(root, CLIP)
    assert len(dataset) == 5
    assert "still be being written" in dataset.broken["YoYo/v_YoYo_g00_c01.mp4"]


def test_one_process_looks_for_all(root: Path, own_cache: Path) -> None:
    """Two processes that start together probe each file once."""
    code = (
        "import sys; from arvid.data import _survey; from pathlib import Path; found = []\n"
        "look = _survey._look\n"
        "_survey._look = lambda *a: found.append(1) or look(*a)\n"
        "from arvid.data.folder import VideoFolder; from arvid.data.clips import ClipSpec\n"
        "VideoFolder(sys.argv[1], ClipSpec(num_frames=5, size=16)); print(len(found))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    counts = sorted(int(process.communicate()[0]) for process in processes)
    assert counts == [0, 0, 6]


def test_files_are_probed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    VideoFolder(root, CLIP)
    monkeypatch.setattr(_survey, "probe_video", lambda *_, **__: pytest.fail("probed again"))
    assert len(VideoFolder(root, CLIP)) == 6


def test_cache_survives_garbage_and_a_folder_that_cannot_be_written(
    root: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    VideoFolder(root, CLIP)
    with (own_cache / "probes.jsonl").open("a") as file:
        file.write('["cut off')
    assert len(Ledger(own_cache / "probes.jsonl")._facts) == 6
    shutil.rmtree(own_cache)
    own_cache.write_text("a file where the folder should be")
    assert len(VideoFolder(root, CLIP)) == 6
    assert caplog.text.count("Set ARVID_CACHE") == 1


def test_motion_is_filled_in(root: Path, own_cache: Path) -> None:
    dataset = VideoFolder(root, CLIP, motion=True)
    scores = [clip.motion for clip in dataset]
    assert all(isinstance(score, float) for score in scores)
    remembered = (own_cache / "motion.jsonl").read_text()
    assert [clip.motion for clip in VideoFolder(root, CLIP, motion=True)] == scores
    assert (own_cache / "motion.jsonl").read_text() == remembered


@pytest.mark.parametrize(
    "options", [{"split": "test"}, {"val_fraction": 2}, {"clips_per_video": 0}]
)
def test_senseless_options_are_refused(root: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        VideoFolder(root, CLIP, **options)


def write_manifest(root: Path, *lines: str, name: str = "list.jsonl") -> Path:
    (root / name).write_text("\n".join(lines))
    return root / name


def test_manifest_jsonl(root: Path) -> None:
    path = write_manifest(
        root,
        json.dumps(
            {"video": "YoYo/v_YoYo_g00_c01.mp4", "caption": "é <b>", "label": "toy", "x": 1}
        ),
        "",
        json.dumps({"path": str(root / "archery/v_archery_g00_c01.mp4"), "label": "Sport"}),
        json.dumps({"path": "archery/v_archery_g01_c01.mp4"}),
    )
    dataset = VideoManifest(path, CLIP)
    assert dataset.classes == ("Sport", "toy")
    assert [(c.caption, c.label) for c in dataset] == [("é <b>", 1), ("", 0), ("", None)]
    assert dataset[1].name == "archery/v_archery_g00_c01.mp4"


def test_manifest_csv(root: Path) -> None:
    path = write_manifest(
        root,
        "path,caption,label",
        'YoYo/v_YoYo_g00_c01.mp4,"a toy, in\ntwo lines",3',
        "archery/v_archery_g01_c01.mp4,,",
        name="list.CSV",
    )
    dataset = VideoManifest(path, CLIP)
    assert dataset.classes == ("0", "1", "2", "3")
    assert [(c.caption, c.label) for c in dataset] == [("a toy, in\ntwo lines", 3), ("", None)]


def test_one_video_may_have_several_captions(root: Path) -> None:
    rows = [json.dumps({"path": "YoYo/v_YoYo_g00_c01.mp4", "caption": c}) for c in ("one", "two")]
    assert [c.caption for c in VideoManifest(write_manifest(root, *rows), CLIP)] == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "line 2: this is not JSON"),
        ("[1]", "line 2: expected an object"),
        ('{"caption": "x"}', "line 2: there is no path"),
        ('{"path": 3}', "line 2: the path of a video must be text"),
        ('{"path": "a.mp4", "caption": 3}', "line 2: caption must be text"),
        ('{"path": "a.mp4", "label": 1.5}', "line 2: label must be"),
        ('{"path": "a.mp4", "label": -1}', "line 2: label must be"),
        ('{"path": "a.mp4", "label": 1}', "partly names"),
        ('{"path": "a.mp4", "path": "b.mp4"}', "line 2: a key is repeated"),
        ("[" * 10_000, "line 2: maximum recursion"),
    ],
)
def test_bad_lines_are_named(root: Path, line: str, message: str) -> None:
    good = json.dumps({"path": "YoYo/v_YoYo_g00_c01.mp4", "label": "toy"})
    with pytest.raises(UserError, match=message):
        VideoManifest(write_manifest(root, good, line), CLIP)


def test_bad_manifests(root: Path) -> None:
    with pytest.raises(UserError, match=r"\.jsonl or \.csv"):
        VideoManifest(root / "list.txt")
    with pytest.raises(UserError, match="cannot be read"):
        VideoManifest(root / "absent.jsonl")
    with pytest.raises(UserError, match="lists no video"):
        VideoManifest(write_manifest(root, ""))
    with pytest.raises(UserError, match="line 1: the name of a column is repeated"):
        VideoManifest(write_manifest(root, "path,label,path", "a,1,2", name="list.csv"))
    with pytest.raises(UserError, match="line 2: expected 2 columns"):
        VideoManifest(write_manifest(root, "path,label", "a,1,2", name="list.csv"))
    with pytest.raises(UserError, match="1 missing"):
        VideoManifest(write_manifest(root, '{"path": "gone.mp4"}'))


def test_ucf101_mini_with_its_lists(shared: Path) -> None:
    data = shared / "data"
    whole = VideoFolder(data / "ucf101_mini", CLIP, strict=True)
    assert (len(whole), len(whole.classes)) == (55, 11)
    names = [clip.name for clip in (whole[i] for i in range(0, 55, 9))]
    assert names[0] == "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"
    for number, (num_train, num_test) in enumerate([(27, 28), (47, 8), (43, 12)], start=1):
        lists = [data / "ucf101_splits" / f"mini_{s}list0{number}.txt" for s in ("train", "test")]
        datasets = [
            VideoFolder(data / "ucf101_mini", CLIP, split_list=x, strict=True) for x in lists
        ]
        assert [len(d) for d in datasets] == [num_train, num_test]
        assert datasets[0].classes == datasets[1].classes == whole.classes
    published = VideoFolder(
        data / "ucf101_mini", CLIP, split_list=data / "ucf101_splits" / "NBP_ucf_train.txt"
    )
    assert (len(published), len(published.missing)) == (27, 9510)
    assert published[3].video.shape == (5, 16, 16, 3)


def test_labels_follow_the_official_order(shared: Path, tmp_path: Path) -> None:
    """The order of the class folders gives UCF-101's own numbering."""
    official = (shared / "data" / "ucf101_splits" / "classInd.txt").read_text().split()[1::2]
    assert sorted(official, key=lambda n: (n.casefold(), n)) == official
    assert len(read_split_list(shared / "data" / "ucf101_splits" / "trainlist01.txt")) == 9537


def test_captioned_mini(shared: Path) -> None:
    manifest = shared / "data" / "captioned_mini" / "captions.jsonl"
    dataset = VideoManifest(manifest, CLIP, strict=True)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert len(dataset) == 48
    assert (dataset[7].caption, dataset[7].name) == (rows[7]["caption"], rows[7]["video"])
    assert dataset[7].video.shape == (5, 16, 16, 3)
    assert [p.num_frames for _, p in dataset._videos] == [row["frames"] for row in rows]
    looked_at = VideoManifest(manifest, CLIP, columns={"num_frames": None}, strict=True)
    assert [p.num_frames for _, p in looked_at._videos] == [row["frames"] for row in rows]
    assert looked_at.fingerprint() == dataset.fingerprint()


def test_weizmann64(shared: Path) -> None:
    dataset = VideoFolder(shared / "data" / "weizmann64", strict=True, motion=True)
    assert len(dataset) == 72
    assert dataset.classes == ("Bend", "JumpingJack", "OneHandWave", "TwoHandWave")
    clip = dataset[20]
    assert (clip.video.shape, clip.caption) == ((17, 64, 64, 3), "jumping jack")
    assert clip.motion is not None
    assert clip.motion > 0


def test_odd_files_in_a_folder(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "Odd").symlink_to(shared / "data" / "odd")
    dataset = VideoFolder(tmp_path / "all", ClipSpec(size=16))
    assert set(dataset.broken) == {"Odd/empty_0bytes.avi", "Odd/truncated_no_moov.mp4"}
    assert set(dataset.too_short) == {"Odd/short_13frames_40x30.mp4", "Odd/tiny_1x1_1fps.mp4"}
    assert len(list(dataset)) == 8


@pytest.mark.parametrize(
    "name", ["video_folder", "video_manifest", "webdataset", "huggingface_videos"]
)
def test_all_datasets_of_files_have_the_common_options(name: str) -> None:
    common, own = parameters(FileOptions), parameters(registry.get("datasets", name))
    assert own.keys() >= common.keys()
    for key in common.keys() - {"clip"}:
        assert (own[key].annotation, own[key].default) == (
            common[key].annotation,
            common[key].default,
        )
        assert own[key].doc == common[key].doc


def test_common_options_in_a_file(root: Path) -> None:
    clip = {"num_frames": 5, "size": 16}
    options = {"root": str(root), "clip": clip, "clips_per_video": 2, "mirror": True}
    dataset = build(
        "datasets", {"class_path": "video_folder", "init_args": options}, what="The dataset"
    )
    expected = VideoFolder(root, CLIP, clips_per_video=2, mirror=True)
    assert dataset.fingerprint() == expected.fingerprint()
    with pytest.raises(UserError, match="miror"):
        build(
            "datasets",
            {"class_path": "video_folder", "init_args": {**options, "miror": True}},
            what="The dataset",
        )
