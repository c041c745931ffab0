"""Files whose frame size or pixel shape changes: all frames are resized to the first one's size.

The reference is ffmpeg's filter `scale`, to which frames of several sizes are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import pytest

from arvid.data import _probing
from arvid.data.clips import ClipSpec, fit_frame
from arvid.data.folder import VideoFolder
from arvid.data.video import Frames, VideoError, iter_frames, probe_video, read_frames, read_video

Part = tuple[tuple[int, int], Fraction]
"""Height, width and pixel shape of some frames."""
NUM = 20
"""Frames of each part."""
SQUARE, WIDE = Fraction(1), Fraction(64, 45)


def scene(index: int, height: int, width: int) -> Frames:
    """A grey frame with a red left top quarter and a green bar that moves down."""
    frame = np.full((height, width, 3), 60, np.uint8)
    frame[: height // 2, : width // 2] = 200, 40, 40
    frame[(index * height // NUM) % height :, -width // 4 :] = 40, 180, 60
    return frame


def set_up(context: Any, part: Part, codec: str) -> None:
    (context.height, context.width), context.sample_aspect_ratio = part
    context.pix_fmt, context.gop_size, context.time_base = "yuv420p", 10, Fraction(1, 25)
    context.options = {"x264-params": "keyint=8:log-level=error"} if codec == "libx264" else {}


def write_parts(path: Path, parts: Sequence[Part], codec: str = "libx264") -> Path:
    """One stream of several parts with NUM frames each. Each part has its own encoder."""
    with av.open(str(path), "w") as target:
        stream = target.add_stream(codec, rate=25)
        set_up(stream.codec_context, parts[0], codec)
        for number, part in enumerate(parts):
            context: Any = stream.codec_context
            if number:
                context = av.CodecContext.create(codec, "w")
                set_up(context, part, codec)
            for i in range(NUM):
                pixels = av.VideoFrame.from_ndarray(scene(i, *part[0]), format="rgb24")
                frame = pixels.reformat(format="yuv420p")
                frame.pts, frame.time_base = NUM * number + i, Fraction(1, 25)
                mux(target, stream, context.encode(frame))
            mux(target, stream, context.encode(None))
    return path


def mux(target: Any, stream: Any, packets: Sequence[Any]) -> None:
    for packet in packets:
        packet.stream = stream
        target.mux(packet)


def scaled(path: Path, height: int, width: int) -> Frames:
    """All frames, resized to one size by ffmpeg's filter."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        nodes: list[Any] = [
            graph.add_buffer(template=stream),
            graph.add("scale", f"{width}:{height}:flags=area"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ]
        for a, b in pairwise(nodes):
            a.link_to(b)
        graph.configure()
        found = []
        for frame in container.decode(stream):
            graph.push(frame)
            found.append(graph.pull().to_ndarray())
    return np.stack(found)


@pytest.mark.parametrize(
    ("name", "codec", "parts", "size"),
    [
        ("shape.ts", "libx264", [((48, 64), WIDE), ((48, 64), SQUARE)], (48, 91)),
        ("square.ts", "libx264", [((48, 64), SQUARE), ((48, 64), WIDE)], (48, 64)),
        ("size.ts", "libx264", [((48, 64), SQUARE), ((96, 64), SQUARE)], (48, 64)),
        (
            "both.ts",
            "libx264",
            [((48, 64), WIDE), ((96, 128), SQUARE), ((32, 32), WIDE)],
            (48, 91),
        ),
        ("size.mp4", "libx264", [((96, 128), SQUARE), ((48, 64), SQUARE)], (96, 128)),
        ("shape.mpg", "mpeg2video", [((48, 64), Fraction(4, 3)), ((96, 64), SQUARE)], (48, 85)),
        ("size.webm", "libvpx", [((48, 64), SQUARE), ((96, 128), SQUARE)], (48, 64)),
        ("size.avi", "mpeg4", [((48, 64), SQUARE), ((64, 48), SQUARE)], (48, 64)),
    ],
)
def test_all_frames_get_the_size_of_the_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    codec: str,
    parts: Sequence[Part],
    size: tuple[int, int],
) -> None:
    monkeypatch.setattr(_probing, "FEW_FRAMES", 0)
    path = write_parts(tmp_path / name, parts, codec)
    meant = scaled(path, *size)
    probe, whole = probe_video(path), read_video(path).frames
    assert (probe.num_frames, probe.height, probe.width) == whole.shape[:3] == meant.shape[:3]
    difference = np.abs(whole.astype(int) - meant).mean(axis=(1, 2, 3))
    assert difference.max() < 4
    assert all(frame.shape == whole.shape[1:] for frame in iter_frames(path))
    for start in (0, 9, NUM - 2, NUM + 9, len(whole) - 3):
        found = read_frames(path, range(start, start + 3), probe=probe)
        np.testing.assert_array_equal(found, whole[start : start + 3])
    last = read_frames(path, [len(whole) - 1], probe=probe, size=(24, 24))[0]
    square = fit_frame(whole[-1], (24, 24))
    assert np.abs(last.astype(int) - square).mean() < 4


def test_a_clip_across_the_change(tmp_path: Path) -> None:
    parts = [((48, 64), WIDE), ((96, 128), SQUARE)]
    (tmp_path / "A").mkdir()
    write_parts(tmp_path / "A" / "a.ts", parts)
    clip = ClipSpec(num_frames=2 * NUM, size=(24, 32), window="start")
    dataset = VideoFolder(tmp_path, clip)
    assert not dataset.broken
    assert dataset[0].video.shape == (2 * NUM, 24, 32, 3)


def test_a_later_size_may_be_absurd_too(tmp_path: Path) -> None:
    path = write_parts(tmp_path / "a.ts", [((48, 64), SQUARE), ((256, 256), SQUARE)])
    with pytest.raises(VideoError, match="256x256 have more than"):
        read_video(path, max_pixels=48 * 64)
