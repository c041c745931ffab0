"""Groups the clips of the page: clips with the same prompt and first frame are shown side by side."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass, field

from arvid.evaluation.records import ClipEntry, ResultRecord
from arvid.report.cells import Row
from arvid.report.comparison import Comparison


@dataclass(kw_only=True)
class Strip:
    """One prompt and the rows' clips for it, as data URIs."""

    prompt: str
    first_frame: str | None
    clips: dict[str, str] = field(default_factory=dict)
    """Row name -> clip; rows without a clip or with a missing file are absent."""
    nearest: dict[str, str] = field(default_factory=dict)
    """Row name -> the training clip most similar to its clip."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The clips of one protocol."""

    heading: str
    rows: Sequence[Row]
    lanes: Sequence[Sequence[Row]]
    """Rows that are shown side by side. If the trained rows are a matrix of methods and token types, one lane per token
    type, with the same methods below each other; else one lane with all rows."""
    strips: Sequence[Strip]
    num_left_out: int
    """Number of prompts with clips that the page does not show."""


def galleries(comparison: Comparison, max_prompts: int) -> list[Gallery]:
    """One gallery per protocol with clips: the first `max_prompts` prompts, with the clips of all rows."""
    found = []
    for heading, pairs in comparison.protocols.items():
        groups = _aligned(pairs)
        shown = groups[:max_prompts]
        rows = [row for row, _ in pairs if any(row.name in group.members for group in shown)]
        strips = [strip for group in shown if (strip := _strip(group)).clips]
        if strips:
            left_out = len(groups) - len(shown)
            found.append(
                Gallery(
                    heading=heading,
                    rows=rows,
                    lanes=_lanes(rows),
                    strips=strips,
                    num_left_out=left_out,
                )
            )
    return found


def _lanes(rows: Sequence[Row]) -> list[list[Row]]:
    references = [row for row in rows if row.is_reference]
    by_type: dict[str, list[Row]] = {}
    for row in rows:
        if not row.is_reference:
            by_type.setdefault(row.factors.get("token_type", ""), []).append(row)
    methods = [[row.name.replace(kind, "") for row in of_type] for kind, of_type in by_type.items()]
    is_matrix = len(methods) > 1 and len(methods[0]) > 1 and all(m == methods[0] for m in methods)
    return [lane for lane in (references, *by_type.values()) if lane] if is_matrix else [list(rows)]


_Member = tuple[ResultRecord, ClipEntry]


@dataclass(kw_only=True)
class _Group:
    """Clips with the same prompt and first frame, by row name."""

    prompt: str
    frame: str | None
    members: dict[str, _Member] = field(default_factory=dict)


def _aligned(pairs: Sequence[tuple[Row, ResultRecord]]) -> list[_Group]:
    """Groups of clips by prompt and content of the first frame. The nth clip of each row goes into the nth group.

    A clip without a first frame joins the first group of its prompt that has no clip of its row yet.
    """
    groups: list[_Group] = []
    framed = [(w, r, c, _data_uri(r, c.first_frame, "image")) for w, r in pairs for c in r.clips]
    # clips with a first frame come first, so that those without can join their groups
    for row, record, clip, frame in sorted(framed, key=lambda entry: entry[3] is None):
        free = (
            group
            for group in groups
            if group.prompt == clip.prompt
            and frame in (group.frame, None)
            and row.name not in group.members
        )
        group = next(free, None)
        if group is None:
            group = _Group(prompt=clip.prompt, frame=frame)
            groups.append(group)
        group.members[row.name] = record, clip
    return groups


def _strip(group: _Group) -> Strip:
    strip = Strip(prompt=group.prompt, first_frame=group.frame)
    for name, (record, clip) in group.members.items():
        if uri := _data_uri(record, clip.file, "video"):
            strip.clips[name] = uri
        if uri := _data_uri(record, clip.nearest_training, "video"):
            strip.nearest[name] = uri
    return strip


def _data_uri(record: ResultRecord, relative: str | None, kind: str) -> str | None:
    """A file of the record as a data URI; None if it is missing or its media type is not `kind`."""
    if relative is None:
        return None
    path = record.path(relative)
    media_type = mimetypes.guess_type(path.name)[0] or ""
    if not media_type.startswith(f"{kind}/") or not path.is_file():
        return None
    return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"
