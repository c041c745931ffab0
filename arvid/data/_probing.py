"""Probe a whole video file: from its packets if these determine the frames exactly, else by decoding it.

Packets determine the frames in two cases. One is a container that states a time for each packet, with a codec that puts
one frame into each. The other is an AVI file of MPEG-4 (such as UCF-101's): a packet may hold two frames (packed
B-frames), but marks them. The packets are trusted only if the decoder returns exactly their frames at the start and at
the end of the file. Damage in between is found when a clip is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import av

from arvid.data._decoding import MAX_PIXELS, Reader, VideoError
from arvid.data._layout import Key, Layout, Probe, runs_of, some_keys
from arvid.data._picture import Painter

TIMED_CONTAINERS = {"mov", "matroska"}
ONE_FRAME_A_PACKET = {
    *("h264", "hevc", "av1", "vp9", "mjpeg", "prores", "dnxhd", "ffv1", "png", "rawvideo"),
}
FEWEST_KEYS = 3
"""Files with fewer key frames are decoded whole: checking their start and end would decode everything anyway."""
FEW_FRAMES = 64
"""Files whose header states fewer frames are decoded whole too, because that is as fast."""
VOP = b"\x00\x00\x01\xb6"
"""Start code of a frame in MPEG-4 part 2. The first two bits after it are the frame type."""
B_FRAME = 2


@dataclass
class _Packets:
    """The frames of a file according to its packets."""

    num_frames: int
    stamps: list[int]
    """Timestamps in ascending order."""
    keys: list[Key]
    first_group: tuple[int, int]
    """Number of packets before the second key frame, and number of frames in them."""
    timed: bool
    """Whether each frame has the timestamp of its packet."""


def probe_video(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Probe:
    """Probe a whole file without keeping frames. Raises VideoError, also for frames of more than `max_pixels`."""
    with Reader(path, max_pixels=max_pixels) as reader:
        count = _counter(reader)
        if count is None:
            return _decode_all(reader)
        counted = _count(count, reader)
        tick = float(reader.stream.time_base or 0)
    found = counted and _checked(path, counted, tick, max_pixels)
    if found:
        return found
    with Reader(path, max_pixels=max_pixels) as reader:
        return _decode_all(reader)


Counter = Callable[[Iterator[Any]], _Packets | None]


def _counter(reader: Reader) -> Counter | None:
    """The function that counts the frames in a file's packets. None if the file must be decoded whole."""
    codec = reader.stream.codec_context.codec.canonical_name
    containers = set(reader.container_name.split(","))
    if 0 < reader.stream.frames < FEW_FRAMES:
        return None
    if containers & TIMED_CONTAINERS and codec in ONE_FRAME_A_PACKET:
        return _timed_packets
    if "avi" in containers and codec == "mpeg4":
        return partial(_mpeg4_packets, fewest_bytes=_fewest_bytes(reader))
    return None


def _count(count: Counter, reader: Reader) -> _Packets | None:
    """The frames according to the packets; None if these do not determine them."""
    try:
        return count(reader.packets())
    except VideoError:
        return None


def _timed_packets(packets: Iterator[av.Packet[Any]]) -> _Packets | None:
    """One frame in each packet, shown at the packet's timestamp. Packets that an edit list drops do not count."""
    stamps: list[int] = []
    keys: list[tuple[int, int | None, int, int]] = []
    for number, packet in enumerate(packets):
        if not packet.size or packet.is_discard:
            continue
        if packet.pts is None or packet.is_corrupt:
            return None
        if packet.is_keyframe:
            keys.append((packet.pts, packet.dts, number, len(stamps)))
        stamps.append(packet.pts)
    # Packets come in decoding order. The index of a frame is the rank of its timestamp.
    rank = {stamp: index for index, stamp in enumerate(sorted(stamps))}
    if len(rank) < len(stamps) or len(keys) < FEWEST_KEYS or keys[0][3]:
        return None
    found = [Key(rank[pts], pts, dts) for pts, dts, *_ in keys]
    return _Packets(len(stamps), sorted(stamps), found, keys[1][2:], timed=True)


def _mpeg4_packets(packets: Iterator[av.Packet[Any]], fewest_bytes: int) -> _Packets | None:
    """Count coded frames. A packet may hold two; the next packet then holds a placeholder without a coded frame.

    B-frames that follow a key frame in the file are displayed before it.
    """
    stamps: list[int] = []
    keys: list[tuple[int | None, int | None, int]] = []
    kinds: list[int] = []
    starts: list[int] = []
    for number, packet in enumerate(packets):
        if not packet.size:
            continue
        if packet.pts is None or packet.is_corrupt:
            return None
        if packet.is_keyframe:
            keys.append((packet.pts, packet.dts, len(kinds)))
            starts.append(number)
        stamps.append(packet.pts)
        kinds += _coded_frames(bytes(packet), fewest_bytes)
    # A placeholder without a packed frame before it is a dropped frame: the counts differ.
    if len(kinds) != len(stamps) or len(keys) < FEWEST_KEYS or starts[0]:
        return None
    found = []
    for pts, dts, coded in keys:
        leading = 0  # B-frames after the key frame, which move its index
        while kinds[coded + 1 + leading :][:1] == [B_FRAME]:
            leading += 1
        found.append(Key(coded + leading, pts, dts))
    return _Packets(
        len(kinds), sorted(stamps), found, (starts[1], keys[1][2]), timed=B_FRAME not in kinds
    )


def _coded_frames(data: bytes, fewest_bytes: int) -> list[int]:
    """Types (0 I, 1 P, 2 B, 3 S) of the frames coded in a packet."""
    starts = []
    at = data.find(VOP)
    while at >= 0:
        starts.append(at)
        at = data.find(VOP, at + 4)
    ends = [*starts[1:], len(data)]
    long = (start for start, end in zip(starts, ends, strict=True) if end - start > fewest_bytes)
    return [data[start + 4] >> 6 for start in long]


def _fewest_bytes(reader: Reader) -> int:
    """A coded frame has more bytes than this: start code, header, and one bit for each block of 16x16."""
    context = reader.stream.codec_context
    return 8 + (context.height // 16) * (context.width // 16) // 8


def _checked(path: str | Path, counted: _Packets, tick: float, max_pixels: int) -> Probe | None:
    """Probe made from the packets; None if the decoder disagrees at the start or at the end of the file."""
    layout = Layout(
        keys=some_keys(counted.keys),
        tick=tick,
        in_order=counted.timed,
        span=(counted.stamps[0], counted.stamps[-1]),
        runs=runs_of(counted.stamps) if counted.timed else (),
    )
    num_packets, num_frames = counted.first_group
    last = counted.keys[-1].frame
    try:
        with Reader(path, max_pixels=max_pixels) as reader:
            # The start: the first group alone, with the decoder flushed after it.
            packets = islice(reader.packets(), num_packets)
            frames = reader.decode_packets(chain(packets, [None]))
            stamps = [frame.pts for frame in _first_painted(reader, frames)]
            if not _agree(stamps, counted, 0, num_frames):
                return None
            shown, as_stored, turn = reader.shown, reader.as_stored, reader.turn
            span = (counted.stamps[-1] - counted.stamps[0]) * tick
            fps = reader.rate(counted.num_frames, span)
        with Reader(path, max_pixels=max_pixels) as reader:
            # The end: from the last key frame, which also tests the seek.
            if reader.seek(layout, last) != last:
                return None
            stamps = [frame.pts for frame in reader.decode()]
            if not _agree(stamps, counted, last, counted.num_frames - last):
                return None
    except VideoError:
        return None
    layout = replace(layout, turn=turn)
    return Probe(counted.num_frames, fps, *shown, layout=layout, as_stored=as_stored)


def _agree(stamps: list[int | None], counted: _Packets, start: int, num_frames: int) -> bool:
    """Whether the decoder returned `num_frames` frames, with the timestamps of the packets from `start` if timed."""
    if len(stamps) != num_frames:
        return False
    return not counted.timed or stamps == counted.stamps[start : start + num_frames]


def _decode_all(reader: Reader) -> Probe:
    """Decode every frame, and pair the key frames with their packets."""
    packets: list[tuple[int | None, int | None]] = []

    def noted() -> Iterator[av.Packet[Any]]:
        for packet in reader.packets():
            if packet.is_keyframe and packet.size:
                packets.append((packet.pts, packet.dts))
            yield packet

    stamps: list[int | None] = []
    keys: list[int] = []
    for frame in _first_painted(reader, reader.decode_packets(noted())):
        if frame.key_frame:
            keys.append(len(stamps))
        stamps.append(frame.pts)
    if not stamps:
        raise VideoError(reader.path, "no frame of it can be decoded")
    # Timestamps count only if every frame has one, and they ascend.
    known = [stamp for stamp in stamps if stamp is not None]
    timed = len(known) == len(stamps) and all(a < b for a, b in pairwise(known))
    by_time = sorted(set(known))
    layout = Layout(
        keys=some_keys(_paired(keys, packets, known if timed else None)),
        turn=reader.turn,
        tick=float(reader.stream.time_base or 0),
        in_order=timed,
        span=(by_time[0], by_time[-1]) if by_time else (0, 0),
        runs=runs_of(by_time) if len(by_time) == len(stamps) else (),
    )
    height, width = reader.shown
    return Probe(
        len(stamps), reader.fps(), height, width, layout=layout, as_stored=reader.as_stored
    )


def _first_painted(reader: Reader, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Yield the same frames. Raises VideoError if the first cannot be converted to RGB."""
    for number, frame in enumerate(frames):
        if not number:
            reader.painted(Painter(), frame)
        yield frame


def _paired(
    keys: list[int], packets: list[tuple[int | None, int | None]], stamps: list[int] | None
) -> list[Key]:
    """Key frames with the timestamps of their packets. Empty if the pairs are not certain."""
    if len(keys) != len(packets):
        return []
    found = [Key(index, *packet) for index, packet in zip(keys, packets, strict=True)]
    if stamps is not None and any(stamps[key.frame] != key.pts for key in found):
        return []
    return found
