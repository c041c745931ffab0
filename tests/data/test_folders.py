"""Realistic folders: endings, folders of frames, links, classes without videos, and files that are left out."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from arvid.contracts import UserError
from arvid.data._walk import LeftOut, walk
from arvid.data.clips import ClipSpec
from arvid.data.folder import VideoFolder
from arvid.data.manifest import VideoManifest
from arvid.data.pictures import has_alpha, probe_pictures, read_pictures
from arvid.data.video import VideoError, read_video, write_video
from arvid.evaluation.real_clips import videos_in

CLIP = ClipSpec(num_frames=4, size=16, window="start")
MUXERS = {
    ".avi": ("avi", "mpeg4"),
    ".M4V": ("mp4", "libx264"),
    ".mpg": ("mpeg", "mpeg1video"),
    ".ts": ("mpegts", "libx264"),
    ".wmv": ("asf", "wmv2"),
    ".flv": ("flv", "flv1"),
    ".ogv": ("ogg", "libvpx"),
    ".3gp": ("3gp", "mpeg4"),
    ".m2ts": ("mpegts", "libx264"),
    ".vob": ("vob", "mpeg2video"),
    ".mxf": ("mxf", "mpeg2video"),
    ".mod": ("vob", "mpeg2video"),
    ".insv": ("mp4", "libx264"),
    ".obu": ("obu", "libsvtav1"),
    ".gif": ("gif", "gif"),
}


def shades(num_frames: int = 8) -> np.ndarray:
    """Frames (T, 32, 48, 3) that brighten by 20 each."""
    frames = np.zeros((num_frames, 32, 48, 3), np.uint8)
    return frames + (20 * np.arange(num_frames, dtype=np.uint8))[:, None, None, None]


def encode(path: Path, container: str, codec: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width = 32, 48
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for pixels in shades():
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            file.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        file.mux(stream.encode(None))


def write_frames(folder: Path, num_frames: int = 12, ending: str = "png") -> Path:
    """A folder of frames whose alphabetical order differs from their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(shades(num_frames)):
        cv2.imwrite(str(folder / f"frame{number}.{ending}"), pixels)
    return folder


def write_webp(path: Path, num_frames: int = 8, milliseconds: Sequence[int] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    animation = cv2.Animation()
    animation.frames = [frame[..., ::-1].copy() for frame in shades(num_frames)]
    animation.durations = np.array(milliseconds or [125] * num_frames, np.int32)
    assert cv2.imwriteanimation(str(path), animation)
    return path


def levels(video: np.ndarray) -> list[int]:
    return [round(level) for level in video.mean((1, 2, 3)) / 20]


@pytest.mark.parametrize("ending", [*MUXERS, ".webp"])
def test_endings_that_can_be_read_are_taken(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "Class" / f"video{ending}"
    if ending == ".webp":
        write_webp(path)
    else:
        encode(path, *MUXERS[ending])
    clip = VideoFolder(tmp_path, CLIP, strict=True)[0]
    assert (clip.name, clip.label) == (f"Class/video{ending}", 0)
    assert levels(clip.video) == [0, 1, 2, 3]
    assert videos_in(tmp_path) == [path]


@pytest.mark.parametrize("ending", ["png", "jpg", "BMP", "tiff"])
def test_folders_of_frames(tmp_path: Path, ending: str) -> None:
    root = tmp_path / "videos"  # beside the cache
    write_frames(root / "Class" / "v_1", ending=ending)
    write_video(root / "Class" / "v_2.mp4", shades(), 8)
    (root / "Class" / "v_1" / "notes.txt").write_text("taken in spring")
    dataset = VideoFolder(root, ClipSpec(num_frames=12, size=16, short="pad"), strict=True)
    assert [clip.name for clip in dataset] == ["Class/v_1", "Class/v_2.mp4"]
    assert levels(dataset[0].video) == list(range(12))
    assert (dataset[0].fps, dataset[0].caption) == (25, "class")
    assert dataset.fingerprint() == VideoFolder(root, dataset.options.clip).fingerprint()
    assert videos_in(root) == [root / "Class" / "v_1", root / "Class" / "v_2.mp4"]


def test_frames_without_classes(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_frames(tmp_path / name)
    dataset = VideoFolder(tmp_path, CLIP)
    assert [(clip.name, clip.label) for clip in dataset] == [("a", None), ("b", None)]
    assert dataset.classes == ()


def test_a_list_of_files_chooses_their_frames(tmp_path: Path) -> None:
    for name in ("v_1", "v_2"):
        write_frames(tmp_path / "videos" / "Class" / name)
    (tmp_path / "list.txt").write_text("Class/v_2.avi 1\nClass/v_3.avi 1\n")
    dataset = VideoFolder(tmp_path / "videos", CLIP, split_list=tmp_path / "list.txt")
    assert ([clip.name for clip in dataset], dataset.missing) == (["Class/v_2"], ("Class/v_3.avi",))


def test_bad_frames_are_told(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "Class" / "v", 4)
    np.testing.assert_array_equal(read_pictures(folder, [1, 1, 3]), shades()[[1, 1, 3]])
    with pytest.raises(VideoError, match="ends after 4 frames, before frame 4"):
        read_pictures(folder, [4])
    cv2.imwrite(str(folder / "frame1.png"), np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(VideoError, match=r"several sizes, e\.g\. 16x16 and 32x48"):
        read_pictures(folder, [0, 1])
    (folder / "frame2.png").write_text("no picture")
    with pytest.raises(VideoError, match=r"frame2\.png is no picture"):
        read_pictures(folder, [2])
    (tmp_path / "text.webp").write_text("no picture")
    for path in (tmp_path / "text.webp", tmp_path / "absent.webp", tmp_path):
        with pytest.raises(VideoError):
            probe_pictures(path)


def test_rate_of_webp_and_alpha(tmp_path: Path) -> None:
    path = write_webp(tmp_path / "a.webp")
    assert probe_pictures(path).fps == 8
    assert not has_alpha(path)
    cv2.imwrite(str(tmp_path / "v0.png"), np.full((8, 8, 4), 255, np.uint8))
    assert not has_alpha(tmp_path)
    cv2.imwrite(str(tmp_path / "v0.png"), np.full((8, 8, 4), 128, np.uint8))
    assert has_alpha(tmp_path)


def test_pictures_of_a_webp_whose_rate_varies_are_the_nearest(tmp_path: Path) -> None:
    """Frames are shown at 0, 0.1, 0.2, 1, 1.1, 1.9, 2 and 2.1 seconds."""
    milliseconds = [100, 100, 800, 100, 800, 100, 100, 100]
    path = write_webp(tmp_path / "Class" / "a.webp", milliseconds=milliseconds)
    times = probe_pictures(path).times
    assert times is not None
    np.testing.assert_allclose(times, [0, 0.1, 0.2, 1, 1.1, 1.9, 2, 2.1])
    clip = ClipSpec(num_frames=3, size=16, fps=1, window="start")
    assert levels(VideoFolder(tmp_path, clip)[0].video) == [0, 3, 6]


def test_names_that_are_not_utf8_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Earlier they ended the whole dataset."""
    write_video(tmp_path / "Walk" / "a.mp4", shades(), 8)
    for name in (b"Walk/\xe4.mp4", b"R\xfcn/b.mp4"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copy(tmp_path / "Walk" / "a.mp4", path)
    dataset = VideoFolder(tmp_path, CLIP)
    assert [clip.name for clip in dataset] == ["Walk/a.mp4"]
    assert "2 names that are not UTF-8" in caplog.text
    assert videos_in(tmp_path) == [tmp_path / "Walk" / "a.mp4"]


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    write_video(tmp_path / "Walk" / "a.mp4", shades(), 8)
    odd = tmp_path / "Walk" / "b.mp4"
    os.mkfifo(odd) if kind == "pipe" else odd.symlink_to("/dev/zero")
    dataset = VideoFolder(tmp_path, CLIP)
    assert len(dataset) == 1
    assert list(dataset.broken) == ["Walk/b.mp4"]


def test_what_is_left_out_is_counted_by_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_video(tmp_path / "Walk" / "a.mp4", shades(), 8)
    write_video(tmp_path / "Walk" / "deeper" / "b.mp4", shades(), 8)
    write_video(tmp_path / "beside.mp4", shades(), 8)
    for name in ("a.txt", "b.txt", "c.xyz", "cover.jpg"):
        (tmp_path / "Walk" / name).touch()
    assert len(VideoFolder(tmp_path, CLIP)) == 1
    for reason in (
        "2 .txt (no video)",
        "1 .xyz (no video)",
        "1 pictures beside videos",
        "1 videos deeper than a class folder",
        "1 videos beside the class folders",
    ):
        assert reason in caplog.text
    caplog.clear()
    assert len(videos_in(tmp_path)) == 3
    assert "2 .txt (no video)" in caplog.text
    assert "deeper" not in caplog.text.partition("left out")[2]


def test_a_class_without_a_video_keeps_its_label(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("Archery", "YoYo"):
        write_video(tmp_path / name / "a.mp4", shades(), 8)
    (tmp_path / "Biking").mkdir()
    (tmp_path / "Diving").mkdir()
    (tmp_path / "Diving" / "a.xyz").touch()
    (tmp_path / "Fencing").mkdir()
    (tmp_path / "Fencing" / "broken.mp4").write_text("no video")
    (tmp_path / "splits").mkdir()  # a folder of lists is no class
    (tmp_path / "splits" / "trainlist01.txt").touch()
    dataset = VideoFolder(tmp_path, CLIP)
    assert dataset.classes == ("Archery", "Biking", "Diving", "Fencing", "YoYo")
    assert [clip.label for clip in dataset] == [0, 4]
    assert "keep their labels: Biking, Diving" in caplog.text


def test_links_are_followed_and_loops_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_video(tmp_path / "disk" / "Walk" / "a.mp4", shades(), 8)
    write_frames(tmp_path / "disk" / "frames")
    root = tmp_path / "root"
    (root / "Run").mkdir(parents=True)
    (root / "Walk").symlink_to(tmp_path / "disk" / "Walk")
    (root / "Run" / "v").symlink_to(tmp_path / "disk" / "frames")
    (root / "Run" / "b.mp4").symlink_to(tmp_path / "disk" / "Walk" / "a.mp4")
    assert [c.name for c in VideoFolder(root, CLIP)] == ["Run/b.mp4", "Run/v", "Walk/a.mp4"]
    (tmp_path / "disk" / "Walk" / "up").symlink_to(root)
    (root / "Run" / "self").symlink_to(root / "Run")
    with caplog.at_level(logging.WARNING):
        found = videos_in(root)
    below = [path.relative_to(root).as_posix() for path in found]
    assert below == ["Run/b.mp4", "Run/v", "Walk/a.mp4"]
    assert "2 links to a folder above (a loop)" in caplog.text
    assert len(VideoFolder(root, CLIP)) == 3


def test_a_dangling_link_is_a_missing_file(tmp_path: Path) -> None:
    write_video(tmp_path / "Walk" / "a.mp4", shades(), 8)
    (tmp_path / "Walk" / "b.mp4").symlink_to(tmp_path / "gone.mp4")
    dataset = VideoFolder(tmp_path, CLIP)
    assert (len(dataset), dataset.missing) == (1, ("Walk/b.mp4",))


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    write_video(tmp_path / ".trash" / "a.mp4", shades(), 8)
    write_video(tmp_path / "Walk" / "a.mp4", shades(), 8)
    (tmp_path / "Walk" / "._a.mp4").touch()
    assert len(VideoFolder(tmp_path, CLIP, strict=True)) == 1
    assert walk(tmp_path, LeftOut()) == [tmp_path / "Walk" / "a.mp4"]


def test_system_folders_are_not_classes(tmp_path: Path) -> None:
    """A zip file from macOS has __MACOSX beside the classes. As a class it would shift their labels."""
    for name in ("a", "b", "__MACOSX/a", "@eaDir", "lost+found"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a/x.mp4", "b/x.mp4", "@eaDir/x.mp4"):
        encode(tmp_path / name, "mp4", "libx264")
    dataset = VideoFolder(tmp_path, CLIP)
    assert dataset.classes == ("a", "b")
    assert [clip.label for clip in dataset] == [0, 1]


def test_a_file_without_an_ending_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encode(tmp_path / "a" / "x.mp4", "mp4", "libx264")
    shutil.copy(tmp_path / "a" / "x.mp4", tmp_path / "a" / "y")
    assert len(VideoFolder(tmp_path, CLIP)) == 1
    assert "1 without an ending (rename videos, or list them in a manifest)" in caplog.text
    (tmp_path / "m.csv").write_text("path\na/y\n")
    assert len(VideoManifest(tmp_path / "m.csv", CLIP)) == 1


def test_a_git_lfs_pointer_is_reported(tmp_path: Path) -> None:
    """A dataset of the hub that was cloned without Git LFS."""
    path = tmp_path / "x.mp4"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(
        VideoError, match=r"a pointer of Git LFS to the video. Fetch.* git lfs pull"
    ):
        read_video(path)


def test_a_folder_of_pictures_alone_is_one_video_and_no_set(tmp_path: Path) -> None:
    write_frames(tmp_path)
    with pytest.raises(UserError, match="no videos"):
        VideoFolder(tmp_path, CLIP)
    assert videos_in(tmp_path) == []
