"""Which clips stand beside each other on the page: those of the same prompt and first frame."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from arvid.evaluation.records import ClipEntry, ResultRecord
from arvid.report.cells import Row
from arvid.report.comparison import Comparison


@dataclass(kw_only=True)
class Strip:
    """One prompt and the clips that the rows made of it, as data URIs."""

    prompt: str
    first_frame: str | None
    clips: dict[str, str] = field(default_factory=dict)
    """By row name; absent where a row has no clip or its file is gone."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The clips of one protocol."""

    heading: str
    rows: Sequence[Row]
    strips: Sequence[Strip]
    num_left_out: int
    """Prompts that the records have clips of and the page has not."""


def galleries(comparison: Comparison, max_prompts: int) -> list[Gallery]:
    """A gallery for each protocol with clips, with the first `max_prompts` prompts (all rows' clips of each)."""
    found = []
    for heading, pairs in comparison.protocols.items():
        groups = _aligned(pairs)
        shown = groups[:max_prompts]
        rows = [row for row, _ in pairs if any(row.name in members for members in shown)]
        strips = [strip for members in shown if (strip := _strip(members)).clips]
        if strips:
            left_out = len(groups) - len(shown)
            gallery = Gallery(heading=heading, rows=rows, strips=strips, num_left_out=left_out)
            found.append(gallery)
    return found


_Member = tuple[ResultRecord, ClipEntry]
_Key = tuple[str, str | None, int]


def _aligned(pairs: Sequence[tuple[Row, ResultRecord]]) -> list[Mapping[str, _Member]]:
    """Clips grouped by prompt and content of the first frame; the nth of a row goes to the nth of the others."""
    groups: dict[_Key, dict[str, _Member]] = {}
    for row, record in pairs:
        seen: dict[tuple[str, str | None], int] = {}
        for clip in record.clips:
            start = clip.prompt, _data_uri(record, clip.first_frame, "image")
            number = seen[start] = seen.get(start, 0) + 1
            groups.setdefault((*start, number), {})[row.name] = record, clip
    return list(groups.values())


def _strip(members: Mapping[str, _Member]) -> Strip:
    record, clip = next(iter(members.values()))
    strip = Strip(prompt=clip.prompt, first_frame=_data_uri(record, clip.first_frame, "image"))
    for name, (record, clip) in members.items():
        if uri := _data_uri(record, clip.file, "video"):
            strip.clips[name] = uri
    return strip


def _data_uri(record: ResultRecord, relative: str | None, kind: str) -> str | None:
    """A file of the record as a data URI; None if it is absent or of another kind than `kind`."""
    if relative is None:
        return None
    path = record.path(relative)
    media_type = mimetypes.guess_type(path.name)[0] or ""
    if not media_type.startswith(f"{kind}/") or not path.is_file():
        return None
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"
