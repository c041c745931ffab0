"""Looking at a whole video file: by its packets where these tell the frames exactly, else by decoding it.

Packets tell them in containers that state a time for each packet, with codecs that keep one frame in each; and in AVI
files of MPEG-4 (as UCF-101's), where packed B-frames lie two in a packet but say so. The packets are trusted only if
the decoder gives just their frames at the start and at the end of the file. Neither looks for damage in between: that
shows when a clip is read.
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
"""Files with fewer key frames are decoded whole: their start and end are all of them."""
FEW_FRAMES = 64
"""Likewise those whose header promises fewer frames: decoding them costs no more."""
VOP = b"\x00\x00\x01\xb6"
"""Begins a frame of MPEG-4 part 2; the first two bits after it say which kind."""
B_FRAME = 2


@dataclass
class _Packets:
    """What a file's packets tell."""

    num_frames: int
    stamps: list[int]
    """Timestamps in ascending order."""
    keys: list[Key]
    first_group: tuple[int, int]
    """Packets before the second key frame, and frames in them."""
    timed: bool
    """Whether the frames bear the timestamps of their packets."""


def probe_video(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Probe:
    """Look at a whole file without keeping a frame. Raises VideoError, also for frames of more than `max_pixels`."""
    with Reader(path, max_pixels=max_pixels) as reader:
        count = _counting(reader)
        if count is None:
            return _decode_all(reader)
        told = _told(count, reader)
        tick = float(reader.stream.time_base or 0)
    found = told and _trusted(path, told, tick, max_pixels)
    if found:
        return found
    with Reader(path, max_pixels=max_pixels) as reader:
        return _decode_all(reader)


Count = Callable[[Iterator[Any]], _Packets | None]


def _counting(reader: Reader) -> Count | None:
    """How the packets of a file are counted; None where it is decoded whole."""
    codec = reader.stream.codec_context.codec.canonical_name
    containers = set(reader.container_name.split(","))
    if 0 < reader.stream.frames < FEW_FRAMES:
        return None
    if containers & TIMED_CONTAINERS and codec in ONE_FRAME_A_PACKET:
        return _timed_packets
    if "avi" in containers and codec == "mpeg4":
        return partial(_mpeg4_packets, fewest_bytes=_fewest_bytes(reader))
    return None


def _told(count: Count, reader: Reader) -> _Packets | None:
    """What the packets tell; None where they do not tell it exactly."""
    try:
        return count(reader.packets())
    except VideoError:
        return None


def _timed_packets(packets: Iterator[av.Packet[Any]]) -> _Packets | None:
    """One frame in each packet, shown at its timestamp. Packets that an edit list leaves out are not counted."""
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
    rank = {stamp: index for index, stamp in enumerate(sorted(stamps))}
    if len(rank) < len(stamps) or len(keys) < FEWEST_KEYS or keys[0][3]:
        return None
    found = [Key(rank[pts], pts, dts) for pts, dts, *_ in keys]
    return _Packets(len(stamps), sorted(stamps), found, keys[1][2:], timed=True)


def _mpeg4_packets(packets: Iterator[av.Packet[Any]], fewest_bytes: int) -> _Packets | None:
    """Coded frames are counted: a packet may hold two, and the next one then a stand-in, which is not coded.

    In the order of showing, B-frames that follow a key frame's packet come before it.
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
    # A stand-in without a frame packed before it stands for a frame that is left out.
    if len(kinds) != len(stamps) or len(keys) < FEWEST_KEYS or starts[0]:
        return None
    found = []
    for pts, dts, coded in keys:
        leading = 0
        while kinds[coded + 1 + leading :][:1] == [B_FRAME]:
            leading += 1
        found.append(Key(coded + leading, pts, dts))
    return _Packets(
        len(kinds), sorted(stamps), found, (starts[1], keys[1][2]), timed=B_FRAME not in kinds
    )


def _coded_frames(data: bytes, fewest_bytes: int) -> list[int]:
    """Kinds (0 I, 1 P, 2 B, 3 S) of the frames coded in a packet."""
    starts = []
    at = data.find(VOP)
    while at >= 0:
        starts.append(at)
        at = data.find(VOP, at + 4)
    ends = [*starts[1:], len(data)]
    long = (start for start, end in zip(starts, ends, strict=True) if end - start > fewest_bytes)
    return [data[start + 4] >> 6 for start in long]


def _fewest_bytes(reader: Reader) -> int:
    """Bytes that a coded frame exceeds: start code and header, and a bit for each block of 16x16."""
    context = reader.stream.codec_context
    return 8 + (context.height // 16) * (context.width // 16) // 8


def _trusted(path: str | Path, told: _Packets, tick: float, max_pixels: int) -> Probe | None:
    """What is known of a file by its packets; None if the decoder disagrees at the start or at the end."""
    layout = Layout(
        keys=some_keys(told.keys),
        tick=tick,
        in_order=told.timed,
        span=(told.stamps[0], told.stamps[-1]),
        runs=runs_of(told.stamps) if told.timed else (),
    )
    num_packets, num_frames = told.first_group
    last = told.keys[-1].frame
    try:
        with Reader(path, max_pixels=max_pixels) as reader:
            packets = islice(reader.packets(), num_packets)
            frames = reader.decode_packets(chain(packets, [None]))
            stamps = [frame.pts for frame in _first_painted(reader, frames)]
            if not _agree(stamps, told, 0, num_frames):
                return None
            shown, as_stored, turn = reader.shown, reader.as_stored, reader.turn
            fps = reader.rate(told.num_frames, (told.stamps[-1] - told.stamps[0]) * tick)
        with Reader(path, max_pixels=max_pixels) as reader:
            if reader.seek(layout, last) != last:
                return None
            stamps = [frame.pts for frame in reader.decode()]
            if not _agree(stamps, told, last, told.num_frames - last):
                return None
    except VideoError:
        return None
    layout = replace(layout, turn=turn)
    return Probe(told.num_frames, fps, *shown, layout=layout, as_stored=as_stored)


def _agree(stamps: list[int | None], told: _Packets, start: int, num_frames: int) -> bool:
    """Whether the decoder gave so many frames from `start` on, with the packets' timestamps if it keeps these."""
    if len(stamps) != num_frames:
        return False
    return not told.timed or stamps == told.stamps[start : start + num_frames]


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
    """The same frames; the first is converted to RGB to see whether that can be done. Raises VideoError."""
    for number, frame in enumerate(frames):
        if not number:
            reader.painted(Painter(), frame)
        yield frame


def _paired(
    keys: list[int], packets: list[tuple[int | None, int | None]], stamps: list[int] | None
) -> list[Key]:
    """Key frames with the timestamps of their packets, where it is clear which is whose."""
    if len(keys) != len(packets):
        return []
    found = [Key(index, *packet) for index, packet in zip(keys, packets, strict=True)]
    if stamps is not None and any(stamps[key.frame] != key.pts for key in found):
        return []
    return found
