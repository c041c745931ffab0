"""Reading and writing video files, with the traps of real ones."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from arvid.contracts import UserError
from arvid.data.video import (
    VideoError,
    iter_frames,
    probe_video,
    read_frames,
    read_video,
    write_frames,
    write_video,
)

# file: frames that decode, (height, width) after rotation, mean frames per second
ODD = {
    "hevc_10bit.mp4": (30, (200, 200), 30.0),
    "non_utf8_metadata.mp4": (86, (360, 640), 16.0),
    "odd_height_640x361.mp4": (122, (361, 640), 29.97),
    "portrait_540x960.mp4": (353, (960, 540), 25.0),
    "short_13frames_40x30.mp4": (13, (30, 40), 12.0),
    "tiny_1x1_1fps.mp4": (5, (1, 1), 1.0),
    "truncated_half_v_Biking_g19_c01.avi": (75, (240, 320), 30000 / 1001),
    "v_Kayaking_g12_c03.avi": (371, (240, 320), 25.0),
    "vfr_no_duration.webm": (74, (720, 1280), 15000 / 1001),
    "vfr_rot180.mp4": (25, (720, 1280), 750000 / 71393),
}
UNREADABLE = {"empty_0bytes.avi": "0 bytes", "truncated_no_moov.mp4": "moov atom not found"}


def moving_square(num_frames: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """A red square moves right over a smooth background, which compression does not blur."""
    ramp = np.linspace(40, 120, height).astype(np.uint8)[:, None, None]
    frames = np.broadcast_to(ramp, (num_frames, height, width, 3)).copy()
    for t, frame in enumerate(frames):
        frame[8:24, 4 + 3 * t : 20 + 3 * t] = (220, 30, 40)
    return frames


@pytest.fixture
def video(tmp_path: Path) -> Path:
    write_video(tmp_path / "video.mp4", moving_square(), 8)
    return tmp_path / "video.mp4"


def test_every_odd_file_has_its_expectation(shared: Path) -> None:
    assert {p.name for p in (shared / "data" / "odd").iterdir()} == {*ODD, *UNREADABLE}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_read_rightly(shared: Path, name: str) -> None:
    path = shared / "data" / "odd" / name
    num_frames, size, fps = ODD[name]
    probe = probe_video(path)
    assert (probe.num_frames, (probe.height, probe.width)) == (num_frames, size)
    assert probe.fps == pytest.approx(fps, rel=1e-3)
    last = read_frames(path, [0, num_frames - 1])
    assert last.shape == (2, *size, 3)
    assert last.dtype == np.uint8


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files_are_named_with_the_reason(shared: Path, name: str) -> None:
    with pytest.raises(VideoError, match=f"{name} cannot be read as a video: .*{UNREADABLE[name]}"):
        read_video(shared / "data" / "odd" / name)


def test_upside_down_video_is_set_upright(shared: Path) -> None:
    """OpenCV rotates by itself, so it is an independent reference for upright."""
    path = shared / "data" / "odd" / "vfr_rot180.mp4"
    _, reference = cv2.VideoCapture(str(path)).read()
    ours = read_video(path, max_frames=1).frames[0]
    assert np.abs(ours.astype(int) - reference[..., ::-1]).mean() < 3
    assert np.abs(ours[::-1, ::-1].astype(int) - reference[..., ::-1]).mean() > 10


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_display_matrix_is_applied(video: Path, turn: int) -> None:
    """Every quarter turn, written into the file's header and compared with OpenCV."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    matrix = struct.pack(">9i", *(v << 16 for v in (cos, sin, 0, -sin, cos, 0, 0, 0)), 1 << 30)
    data = bytearray(video.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # after version, times, track and layer of the header
    data[at : at + 36] = matrix
    video.write_bytes(data)
    _, reference = cv2.VideoCapture(str(video)).read()
    ours = read_video(video).frames[0]
    assert ours.shape == reference.shape
    assert np.abs(ours.astype(int) - reference[..., ::-1]).mean() < 3


@pytest.mark.parametrize(
    "clip", ["ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01", "LongJump/v_LongJump_g04_c03"]
)
def test_packed_b_frames_come_in_decoding_order(shared: Path, clip: str) -> None:
    """The timestamps of these files are out of order. The frames are not: their motion is smooth."""
    path = shared / "data" / "ucf101_mini" / f"{clip}.avi"
    with av.open(str(path)) as container:
        stamps = [frame.pts for frame in container.decode(video=0)]
    assert stamps != sorted(stamps)
    frames = read_video(path).frames[:, ::4, ::4].astype(np.float32)
    by_time = frames[np.argsort(stamps)]
    assert np.abs(np.diff(frames, axis=0)).mean() < np.abs(np.diff(by_time, axis=0)).mean()
    assert len(frames) == len(stamps)
    assert probe_video(path).fps == 25


def test_corruption_is_an_error_but_a_missing_end_is_not(shared: Path, tmp_path: Path) -> None:
    data = bytearray((shared / "data" / "captioned_mini" / "tav_man-skiing.mp4").read_bytes())
    third = len(data) // 3
    data[third : 2 * third] = bytes(third)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data)
    assert len(read_video(broken, max_frames=5).frames) == 5
    with pytest.raises(VideoError, match=r"broken\.mp4 .*decoding fails after \d+ frames"):
        read_video(broken)


def test_round_trip(tmp_path: Path) -> None:
    frames = moving_square()
    write_video(tmp_path / "a.mp4", frames, 8)
    video = read_video(tmp_path / "a.mp4")
    assert video.fps == 8
    assert video.frames.shape == frames.shape
    assert np.abs(video.frames.astype(int) - frames).mean() < 1.5
    colour = video.frames[0, 12:20, 8:16].reshape(-1, 3).mean(0)
    np.testing.assert_allclose(colour, (220, 30, 40), atol=6)


def test_written_file_plays_in_browsers(video: Path) -> None:
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.colorspace == 1  # BT.709
        assert stream.average_rate == 8
    data = video.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("fps", [1, 8.0, 24000 / 1001, 60])
def test_frame_rates_survive(tmp_path: Path, fps: float) -> None:
    write_video(tmp_path / "a.mp4", moving_square(5), fps)
    assert read_video(tmp_path / "a.mp4").fps == pytest.approx(fps, rel=1e-4)


@pytest.mark.parametrize(
    ("size", "padded"), [((31, 45), (32, 46)), ((1, 1), (2, 2)), ((2, 2), (2, 2))]
)
def test_odd_sizes_repeat_the_edge(
    tmp_path: Path, size: tuple[int, int], padded: tuple[int, int]
) -> None:
    frames = np.full((3, *size, 3), 90, np.uint8)
    write_video(tmp_path / "a.mp4", frames, 8)
    video = read_video(tmp_path / "a.mp4")
    assert video.frames.shape == (3, *padded, 3)
    assert np.abs(video.frames.astype(int) - 90).max() <= 2


def test_single_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_square(1), 8)
    assert read_video(tmp_path / "a.mp4").frames.shape[0] == 1


def test_partial_reading_agrees_with_whole(video: Path) -> None:
    whole = read_video(video).frames
    np.testing.assert_array_equal(np.stack(list(iter_frames(video))), whole)
    np.testing.assert_array_equal(read_frames(video, [2, 5, 5, 9]), whole[[2, 5, 5, 9]])
    np.testing.assert_array_equal(read_video(video, max_frames=4).frames, whole[:4])


def test_frames_beyond_the_end_are_an_error(video: Path) -> None:
    with pytest.raises(VideoError, match="ends after 12 frames"):
        read_frames(video, [0, 12])
    with pytest.raises(ValueError, match="ascending"):
        read_frames(video, [3, 2])


def test_other_bad_files(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    for name, reason in [
        ("none.mp4", "no such file"),
        (".", "folder"),
        ("text.mp4", "Invalid data"),
    ]:
        with pytest.raises(VideoError, match=reason) as caught:
            read_video(tmp_path / name)
        assert isinstance(caught.value, UserError)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.time_base = 8000, Fraction(1, 8000)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(VideoError, match="no video stream"):
        probe_video(tmp_path / "sound.mp4")


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), 8, "uint8"),
        ([1, 2], 8, "numpy array"),
        (np.zeros((8, 8, 3), np.uint8), 8, r"\(T, H, W, 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), 8, "none of them 0"),
        (np.zeros((2, 8, 8, 4), np.uint8), 8, r"\(T, H, W, 3\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), 0, "fps"),
        (np.zeros((2, 8, 8, 3), np.uint8), float("nan"), "fps"),
    ],
)
def test_wrong_frames_are_refused(tmp_path: Path, frames: object, fps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", frames, fps)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_frames_that_end_in_an_error_leave_no_file(tmp_path: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from moving_square(2)
        raise UserError("the third one is broken")

    with pytest.raises(UserError, match="the third one is broken"):
        write_frames(tmp_path / "a.mp4", frames(), 8)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.mp4 cannot be written"):
        write_video(tmp_path / "file" / "a.mp4", moving_square(2), 8)
    with pytest.raises(ValueError, match=r"\.mp4 files"):
        write_video(tmp_path / "a.gif", moving_square(2), 8)


HASH = """
import hashlib, sys
from pathlib import Path
from arvid.data.sprites import Sprites
from arvid.data.video import write_video

write_video(sys.argv[1], Sprites(1, num_frames=17, size=32)[0].video, 8)
print(hashlib.sha256(Path(sys.argv[1]).read_bytes()).hexdigest())
"""


def test_a_file_depends_on_its_frames_alone(tmp_path: Path) -> None:
    """It must not depend on earlier content of memory. glibc fills memory with a pattern here."""
    found = {
        subprocess.run(
            [sys.executable, "-c", HASH, tmp_path / "clip.mp4"],
            env={**os.environ, "MALLOC_PERTURB_": filled},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for filled in ("1", "85", "170")
    }
    assert len(found) == 1
