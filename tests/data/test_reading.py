"""Frames are read as displayed (orientation, pixel shape, times), and seeking gives the same frames.

References are ffmpeg's own: its filter graph through PyAV, or Pillow for photos.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.filter
import cv2
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from numpy.typing import NDArray
from PIL import Image, ImageOps

from arvid.data import _probing
from arvid.data._area import can_shrink, shrink
from arvid.data._decoding import Reader
from arvid.data.clips import ClipSpec, clip_indices, fit_frame, frames_there
from arvid.data.folder import VideoFolder
from arvid.data.video import Frames, VideoError, probe_video, read_frames, read_video

X264 = "keyint=8:scenecut=0:log-level=error"


def scenes(num: int, height: int = 48, width: int = 64) -> list[Frames]:
    """Frames with a red corner, top left, and a green square that moves."""
    frames = []
    for i in range(num):
        frame = np.full((height, width, 3), 40, np.uint8)
        frame[:12, :16] = 220, 30, 30
        frame[20:30, 2 * i % (width - 10) :][:, :10] = 30, 200, 60
        frames.append(frame)
    return frames


def encode(
    path: Path,
    codec: str = "libx264",
    *,
    num: int = 40,
    options: Mapping[str, str] | None = None,
    container: Mapping[str, str] | None = None,
    pixels: str = "yuv420p",
    pts: Callable[[int], int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    pixel_shape: Fraction | None = None,
    size: tuple[int, int] = (48, 64),
) -> Path:
    with av.open(str(path), "w", options=dict(container or {})) as target:
        stream = target.add_stream(codec, rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        stream.options = dict(options or ({"x264-params": X264} if codec == "libx264" else {}))
        stream.codec_context.gop_size = 10
        stream.codec_context.time_base = time_base
        if pixel_shape:
            stream.sample_aspect_ratio = pixel_shape
        for i, frame in enumerate(scenes(num, *size)):
            given = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)
            given.pts, given.time_base = pts(i) if pts else i, time_base
            target.mux(stream.encode(given))
        target.mux(stream.encode(None))
    return path


def filtered(path: Path, *filters: tuple[str, str]) -> Frames:
    """The first frame, made by ffmpeg's filter graph."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        graph = av.filter.Graph()
        nodes: list[Any] = [graph.add_buffer(template=stream)]
        nodes += [graph.add(name, options) for name, options in filters]
        nodes += [graph.add("format", "rgb24"), graph.add("buffersink")]
        for a, b in pairwise(nodes):
            a.link_to(b)
        graph.configure()
        graph.push(frame)
        return np.asarray(graph.pull().to_ndarray(), np.uint8)


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write a display matrix into the header of an mp4 file."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # after version, times, track and layer
    data[at : at + 36] = struct.pack(">9i", *(v << 16 for v in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "filters"),
    [
        ((1, 0, 0, 1), []),
        ((-1, 0, 0, 1), [("hflip", "")]),
        ((1, 0, 0, -1), [("vflip", "")]),
        ((-1, 0, 0, -1), [("hflip", ""), ("vflip", "")]),
        ((0, 1, -1, 0), [("transpose", "clock")]),
        ((0, -1, 1, 0), [("transpose", "cclock")]),
        ((0, 1, 1, 0), [("transpose", "cclock_flip")]),
        ((0, -1, -1, 0), [("transpose", "clock_flip")]),
    ],
)
def test_display_matrices(
    tmp_path: Path, matrix: tuple[int, int, int, int], filters: list[tuple[str, str]]
) -> None:
    path = encode(tmp_path / "a.mp4")
    set_matrix(path, *matrix)
    frames, probe = read_video(path).frames, probe_video(path)
    np.testing.assert_array_equal(frames[0], filtered(path, *filters))
    assert (probe.height, probe.width) == frames.shape[1:3]
    np.testing.assert_array_equal(read_frames(path, [25], probe=probe)[0], frames[25])
    determinant = matrix[0] * matrix[3] - matrix[1] * matrix[2]
    assert probe.as_stored == (determinant > 0)


def test_orientation_in_the_first_frame_alone(tmp_path: Path) -> None:
    """H.264 states it in a message with one frame. It holds for all frames, also if reading begins later."""
    plain, path = encode(tmp_path / "plain.mp4"), tmp_path / "turned.mkv"
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        given = source.streams.video[0]
        stream = target.add_stream_from_template(given)
        turn = BitStreamFilterContext("h264_metadata=display_orientation=insert:rotate=90", given)
        packets = [p for p in source.demux(given) if p.size]
        for packet in [new for p in [*packets, None] for new in turn.filter(p)]:
            packet.stream = stream
            target.mux(packet)
    probe = probe_video(path)
    assert (probe.height, probe.width) == (64, 48)
    meant = np.rot90(read_video(plain).frames, axes=(1, 2))
    np.testing.assert_array_equal(read_video(path).frames, meant)
    np.testing.assert_array_equal(read_frames(path, [30, 31], probe=probe), meant[30:32])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_photos(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(scenes(1)[0]).save(path, exif=exif)
    with Image.open(path) as photo:
        meant = np.asarray(ImageOps.exif_transpose(photo).convert("RGB")).astype(int)
    ours = read_video(path).frames[0]
    assert ours.shape == meant.shape
    assert np.abs(ours - meant).mean() < 4


@pytest.mark.parametrize(
    ("shape", "width"),
    [
        (Fraction(64, 45), 91),
        (Fraction(10, 11), 58),
        (Fraction(1), 64),
        (Fraction(1001, 1000), 64),
        (Fraction(4, 3), 85),
    ],
)
def test_pixels_are_made_square(tmp_path: Path, shape: Fraction, width: int) -> None:
    path = encode(tmp_path / "a.mp4", pixel_shape=shape)
    probe = probe_video(path)
    frames = read_video(path).frames
    assert (probe.height, probe.width) == frames.shape[1:3] == (48, width)
    assert probe.as_stored == (width == 64)
    meant = filtered(path, ("scale", f"{width}:48:flags=area"))
    assert np.abs(frames[0].astype(int) - meant).mean() < 3
    square = fit_frame(np.ascontiguousarray(meant), (24, 24))
    clip = read_frames(path, [0], size=(24, 24))[0]
    assert np.abs(clip.astype(int) - square).mean() < 4
    set_matrix(path, 0, 1, -1, 0)
    assert read_video(path).frames.shape[1:3] == (width, 48)


def test_shared_faults(shared: Path) -> None:
    """Files that were read wrongly at commit 17cedba."""

    def red(name: str) -> str:
        frame = read_video(shared / "faults" / "mirrored" / name).frames[0].astype(int)
        rows, columns = np.nonzero(frame[..., 0] - frame[..., 1] > 80)
        middle = frame.shape[0] / 2, frame.shape[1] / 2
        return "tb"[int(rows.mean() > middle[0])] + "lr"[int(columns.mean() > middle[1])]

    assert (red("tl_hflip.mp4"), red("tl_vflip.mp4")) == ("tr", "bl")
    assert read_video(shared / "faults/sar/sar.mp4").frames.shape[1:] == (128, 228, 3)
    path = shared / "faults/vfr/vfr.mp4"
    probe = probe_video(path)
    assert probe.times is not None
    spec = ClipSpec(num_frames=9, fps=5, window="start")
    indices = clip_indices(80, probe.fps, spec, times=probe.times)
    assert indices is not None
    np.testing.assert_allclose(probe.times[indices], np.arange(9) / 5, atol=0.051)


@pytest.mark.parametrize(
    ("codec", "suffix", "pixels"),
    [
        ("libx264", ".mp4", "yuvj420p"),  # full range
        ("libx264", ".mp4", "yuv444p"),
        ("libx264rgb", ".mp4", "rgb24"),
        ("gif", ".gif", "rgb8"),  # a palette
        ("ffv1", ".mkv", "gray"),
        ("png", ".mov", "rgba"),
    ],
)
def test_other_pixels_are_read_as_ffmpeg_does(
    tmp_path: Path, codec: str, suffix: str, pixels: str
) -> None:
    path = encode(tmp_path / f"a{suffix}", codec, num=5, pixels=pixels, options={})
    np.testing.assert_array_equal(read_video(path).frames[0], filtered(path))


@pytest.mark.parametrize(
    ("codec", "suffix", "pixels", "options"),
    [
        ("libx264", ".mp4", "yuv420p", {"x264-params": f"{X264}:colormatrix=bt2020nc"}),
        ("libx264", ".mp4", "yuv420p", {"x264-params": f"{X264}:colormatrix=bt709:fullrange=on"}),
        ("libx264", ".mp4", "gray10le", {}),
        ("libvpx-vp9", ".webm", "yuva420p", {}),
        ("ffv1", ".mkv", "gray16le", {}),
        ("rawvideo", ".nut", "monob", {}),
    ],
)
def test_other_colours_are_read_as_ffmpeg_does(
    tmp_path: Path, codec: str, suffix: str, pixels: str, options: dict[str, str]
) -> None:
    path = encode(tmp_path / f"a{suffix}", codec, num=5, pixels=pixels, options=options)
    np.testing.assert_array_equal(read_video(path).frames[0], filtered(path))


@pytest.mark.parametrize("matrix", ["ICtCp", "YCgCo", "bt2020c"])
def test_colours_that_ffmpeg_does_not_convert_are_told(tmp_path: Path, matrix: str) -> None:
    """Earlier they ended a training at the first clip."""
    (tmp_path / "A").mkdir()
    options = {"x264-params": f"{X264}:colormatrix={matrix}"}
    path = encode(tmp_path / "A" / "a.mp4", options=options)
    for read in (probe_video, read_video, lambda at: read_frames(at, [3])):
        with pytest.raises(VideoError, match=r"its pixels \(yuv420p, colour space \d+\) cannot"):
            read(path)
    encode(tmp_path / "A" / "b.mp4")
    dataset = VideoFolder(tmp_path, ClipSpec(num_frames=2, size=16))
    assert (len(dataset), list(dataset.broken)) == (1, ["A/a.mp4"])


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as target:
        sound = target.add_stream("aac", rate=8000)
        cover = target.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(scenes(1)[0], format="rgb24")
        target.mux(cover.encode(picture.reformat(format="yuvj420p")))
        target.mux(cover.encode(None))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.sample_rate, samples.time_base = 8000, Fraction(1, 8000)
        target.mux([*sound.encode(samples), *sound.encode(None)])
    for read in (probe_video, read_video):
        with pytest.raises(VideoError, match="sound with a cover picture, and no video"):
            read(path)


# Times


def two_rates(i: int) -> int:
    """Frame times in hundredths of a second: one second at 50 fps, then 10 fps."""
    return 2 * i if i < 50 else 100 + 10 * (i - 50)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("late", [0, 700])
def test_frames_of_a_varying_rate_are_the_nearest(tmp_path: Path, suffix: str, late: int) -> None:
    path = encode(
        tmp_path / f"a{suffix}",
        num=80,
        pts=lambda i: two_rates(i) + late,
        time_base=Fraction(1, 100),
    )
    probe = probe_video(path)
    times = np.array([two_rates(i) for i in range(80)]) / 100
    assert probe.times is not None
    np.testing.assert_allclose(probe.times - probe.times[0], times, atol=2e-3)
    for start in (0, 20, 49):
        spec = ClipSpec(num_frames=9, fps=5, window="start")
        indices = clip_indices(80 - start, probe.fps, spec, times=probe.times[start:])
        assert indices is not None
        wanted = times[start] + np.arange(9) / 5
        nearest = np.abs(times[start:, None] - wanted).min(0)
        np.testing.assert_allclose(np.abs(times[start:][indices] - wanted), nearest, atol=3e-3)
        assert (np.diff(indices) >= 0).all()
    frames = read_video(path).frames
    np.testing.assert_array_equal(read_frames(path, [60, 61], probe=probe), frames[60:62])


def test_frames_before_time_zero(tmp_path: Path) -> None:
    """ffmpeg gives no time to frames of an mkv file before time 0. They do not count for the rate."""
    options = {"x264-params": X264 + ":bframes=0"}
    source = encode(tmp_path / "a.mkv", num=80, options=options)
    path = tmp_path / "b.mkv"
    with (
        av.open(str(source)) as given,
        av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as target,
    ):
        stream = target.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.pts is not None:
                packet.pts = packet.dts = packet.pts - 2000
                packet.stream = stream
                target.mux(packet)
    probe = probe_video(path)
    assert (probe.num_frames, probe.fps) == (80, 25)


def test_the_ends_of_a_varying_rate() -> None:
    times = np.array([two_rates(i) for i in range(80)]) / 100
    fps = 79 / times[-1]

    def cut(**options: Any) -> list[int] | None:
        spec = ClipSpec(**{"fps": 5, "window": "start", **options})
        found = clip_indices(80, fps, spec, times=times, rng=np.random.default_rng(1))
        return None if found is None else found.tolist()

    assert cut(num_frames=21) is None
    padded = cut(num_frames=21, short="pad")
    assert padded is not None
    assert padded[-1] == 79
    spec = ClipSpec(num_frames=21, fps=5)
    assert frames_there(80, fps, spec, times) == 20
    random = [cut(num_frames=15, window="random") for _ in range(3)]
    assert all(r is not None and r[-1] <= 79 for r in random)
    assert cut(num_frames=4, fps=None) == [0, 1, 2, 3], "without a rate, frames follow each other"


def test_a_constant_rate_is_cut_as_ever(tmp_path: Path) -> None:
    probe = probe_video(encode(tmp_path / "a.mkv"))  # in milliseconds
    assert probe.times is None
    assert probe.fps == 25


# Seeking and probing


@pytest.fixture(autouse=True)
def by_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also probe files of few frames by their packets."""
    monkeypatch.setattr(_probing, "FEW_FRAMES", 0)


OTHERS = [
    ("libx264", ".mp4", {"x264-params": X264 + ":open-gop=1:bframes=3"}),
    ("libx264", ".mkv", {"x264-params": X264 + ":open-gop=1:bframes=3"}),
    ("libx264", ".mov", {"x264-params": X264 + ":ref=4:bframes=2:b-pyramid=2"}),
    ("libx264", ".mp4", {"x264-params": "intra-refresh=1:keyint=8:log-level=error"}),
    ("libx264", ".ts", {"x264-params": X264 + ":open-gop=1:bframes=3"}),
    ("libx264", ".flv", {"x264-params": X264}),
    ("libx265", ".mp4", {"x265-params": "open-gop=1:keyint=8:bframes=3:log-level=error"}),
    ("libvpx-vp9", ".webm", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    ("libvpx", ".webm", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    ("mpeg4", ".avi", {"bf": "2"}),
    ("mpeg4", ".mp4", {"bf": "2"}),
    ("mpeg2video", ".mpg", {"bf": "2"}),
    ("wmv2", ".wmv", {}),
    ("ffv1", ".mkv", {}),
]


def require_exact(path: Path, num_reads: int = 8) -> None:
    """Clips read from key frames equal those of the whole video, and packets give the same probe as decoding."""
    probe, whole = probe_video(path), read_video(path).frames
    with Reader(path) as reader:
        decoded = _probing._decode_all(reader)
    for name in ("num_frames", "fps", "height", "width", "as_stored"):
        assert getattr(probe, name) == getattr(decoded, name), name
    assert probe.layout.keys == decoded.layout.keys
    assert probe.num_frames == len(whole)
    rng = np.random.default_rng(0)
    for start in rng.integers(0, len(whole), num_reads):
        indices = range(int(start), min(int(start) + 3, len(whole)))
        np.testing.assert_array_equal(
            read_frames(path, indices, probe=probe), whole[start : start + 3]
        )


@pytest.mark.parametrize(("codec", "suffix", "options"), OTHERS)
def test_seeking_gives_the_frames_of_a_full_decode(
    tmp_path: Path, codec: str, suffix: str, options: dict[str, str]
) -> None:
    require_exact(encode(tmp_path / f"a{suffix}", codec, options=options))


def test_other_timestamps(tmp_path: Path) -> None:
    """A negative start becomes an edit list, which drops frames; fragments have no index."""
    cut = encode(tmp_path / "cut.mp4", pts=lambda i: i - 7)
    require_exact(cut)
    require_exact(encode(tmp_path / "late.mkv", pts=lambda i: i + 7000))
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    require_exact(encode(tmp_path / "fragments.mp4", container=fragments))


def test_shared_files_are_read_exactly(shared: Path) -> None:
    odd = [p for p in (shared / "data" / "odd").iterdir() if p.stat().st_size]
    ucf = sorted((shared / "data" / "ucf101_mini").glob("*/*.avi"))
    for path in [*odd, *ucf[::4]]:
        if path.name != "truncated_no_moov.mp4":
            require_exact(path, 3)


def test_only_frames_from_the_key_frame_on_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.mp4", num=200)
    probe = probe_video(path)
    decoded = []
    note = Reader._note
    monkeypatch.setattr(Reader, "_note", lambda self, f: decoded.append(1) or note(self, f))
    read_frames(path, range(180, 184), probe=probe)
    assert len(decoded) <= 12
    decoded.clear()
    probe_video(path)
    assert len(decoded) <= 24, "probing decodes the first and the last group alone"


# Size


def test_frames_are_resized_as_they_are_decoded(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4")
    whole = read_video(path)
    small = read_video(path, size=(24, 24))
    meant = np.stack([fit_frame(frame, (24, 24)) for frame in whole.frames])
    np.testing.assert_array_equal(small.frames, meant)
    assert read_video(path, size=(10, 40), resize="squash").frames.shape == (40, 10, 40, 3)


def test_absurd_sizes_are_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4")
    for read in (probe_video, read_video):
        with pytest.raises(VideoError, match=r"48x64 have more than 3,071 pixels.* max_pixels"):
            read(path, max_pixels=48 * 64 - 1)
        read(path, max_pixels=48 * 64)
    huge = encode(tmp_path / "huge.mp4", "mjpeg", num=1, size=(8192, 8192), pixels="yuvj420p")
    with pytest.raises(VideoError, match="8192x8192 have more than"):
        read_video(huge)


def test_a_datasets_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    encode(tmp_path / "a" / "small.mp4")
    encode(tmp_path / "a" / "large.mp4", size=(96, 128))
    spec = ClipSpec(num_frames=5, size=16)
    assert len(VideoFolder(tmp_path, spec)) == 2
    limited = VideoFolder(tmp_path, spec, max_pixels=5000)
    assert list(limited.broken) == ["a/large.mp4"]
    assert "5,000 pixels" in limited.broken["a/large.mp4"]


@pytest.mark.parametrize(
    ("old", "new"), [((240, 320), (128, 171)), ((53, 77), (20, 13)), ((100, 90), (99, 90))]
)
def test_shrinking_is_opencvs(old: tuple[int, int], new: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (*old, 3), np.uint8)
    meant: NDArray[Any] = cv2.resize(noise, new[::-1], interpolation=cv2.INTER_AREA)
    assert can_shrink(old, new)
    ours = shrink(noise, new, 0, 0, new)
    assert np.abs(ours.astype(int) - meant).max() <= 1
    assert (ours != meant).mean() < 1e-2
    part = shrink(noise, new, 2, 3, (9, 7))
    np.testing.assert_array_equal(part, ours[2:11, 3:10])
