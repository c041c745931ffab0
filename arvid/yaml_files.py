"""YAML as arvid reads it: plain data, in which no key stands twice and which is not larger than it looks.

PyYAML takes the last of two equal keys, and anchors let a file of a kilobyte stand for billions of values. Both are
seen in the stream of parser events, before anything is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from arvid.errors import UserError

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000
"""Counted with every alias (*name) standing for all that its anchor (&name) holds."""
MAX_DEPTH = 64

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(path: str | Path) -> Any:
    """The content of a YAML file. Raises UserError that names the file and the line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        check_yaml(text)
        return yaml.load(text, Loader=_Parser)  # the parser of safe_load, in C where there is one
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:  # a date of month 13 is a ValueError
        raise UserError(
            f"{path} is not readable as YAML: {' '.join(str(error).split())}"
        ) from error


def check_yaml(text: str) -> None:
    """Raise YAMLError for text that is no YAML, holds a key twice, or stands for too many values."""
    if len(text) > MAX_BYTES:
        raise yaml.YAMLError(f"it has {len(text):,} characters, more than {MAX_BYTES:,}")
    checker = _Checker()
    for event in yaml.parse(text, Loader=_Parser):
        checker.see(event)


@dataclass
class _Open:
    """A mapping or list whose end has not come yet."""

    anchor: str | None
    is_mapping: bool
    size: int = 1
    num_children: int = 0
    keys: set[str] = field(default_factory=set)


class _Checker:
    """Counts values and compares keys as the events of a document go by."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._sizes: dict[str, int] = {}

    def see(self, event: yaml.Event) -> None:
        """Take in the next event."""
        if isinstance(event, yaml.ScalarEvent):
            self._see_key(event)
            self._add(event.anchor, 1, event)
        elif isinstance(event, yaml.AliasEvent):
            if any(place.anchor == event.anchor for place in self._open):
                raise _fault(event, f"*{event.anchor} holds itself")
            self._add(None, self._sizes.get(str(event.anchor), 1), event)
        elif isinstance(event, yaml.CollectionStartEvent):
            is_mapping = isinstance(event, yaml.MappingStartEvent)
            self._open.append(_Open(event.anchor, is_mapping))
            if len(self._open) > MAX_DEPTH:
                raise _fault(event, f"values lie more than {MAX_DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = self._open.pop()
            self._add(closed.anchor, closed.size, event)

    def _see_key(self, event: yaml.ScalarEvent) -> None:
        place = self._open[-1] if self._open else None
        if place is None or not place.is_mapping or place.num_children % 2:
            return
        if event.value in place.keys:
            raise _fault(event, f"the key {event.value!r} stands there twice")
        place.keys.add(event.value)

    def _add(self, anchor: str | None, size: int, event: yaml.Event) -> None:
        """A value has ended: it counts for what holds it, and for the aliases of its anchor."""
        if anchor is not None:
            self._sizes[anchor] = size
        if self._open:
            place = self._open[-1]
            place.num_children += 1
            place.size += size
            if place.size > MAX_VALUES:
                raise _fault(event, f"it stands for more than {MAX_VALUES:,} values")


def _fault(event: yaml.Event, what: str) -> yaml.YAMLError:
    assert event.start_mark is not None
    return yaml.YAMLError(f"{what} (line {event.start_mark.line + 1})")
