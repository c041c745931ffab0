"""Reads YAML as plain data. Refuses duplicate keys, and aliases that expand to too many values.

PyYAML silently takes the last of two equal keys, and anchors let a kilobyte expand to billions of values. Both are
detected in the stream of parser events, before anything is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from arvid.errors import UserError

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000
"""Maximum number of values, with every alias (*name) counted as all values of its anchor (&name)."""
MAX_DEPTH = 64

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(path: str | Path) -> Any:
    """The content of a YAML file. Raises UserError with the file and the line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        check_yaml(text)
        return yaml.load(text, Loader=_Parser)  # as safe_load, in C if available
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:  # a date of month 13 is a ValueError
        raise UserError(
            f"{path} is not readable as YAML: {' '.join(str(error).split())}"
        ) from error


def check_yaml(text: str) -> None:
    """Raise YAMLError for invalid YAML, a duplicate key, or too many values."""
    if len(text) > MAX_BYTES:
        raise yaml.YAMLError(f"it has {len(text):,} characters, more than {MAX_BYTES:,}")
    checker = _Checker()
    for event in yaml.parse(text, Loader=_Parser):
        checker.see(event)


@dataclass
class _Open:
    """A mapping or list that has not ended yet. `size` counts all values inside, with aliases expanded."""

    anchor: str | None
    is_mapping: bool
    size: int = 1
    num_children: int = 0
    keys: set[str] = field(default_factory=set)


class _Checker:
    """Counts values and compares keys during the events of a document."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._sizes: dict[str, int] = {}

    def see(self, event: yaml.Event) -> None:
        """Process the next event."""
        if isinstance(event, yaml.ScalarEvent):
            self._see_key(event)
            self._add(event.anchor, 1, event)
        elif isinstance(event, yaml.AliasEvent):
            if any(parent.anchor == event.anchor for parent in self._open):
                raise _fault(event, f"*{event.anchor} contains itself")
            self._add(None, self._sizes.get(str(event.anchor), 1), event)
        elif isinstance(event, yaml.CollectionStartEvent):
            is_mapping = isinstance(event, yaml.MappingStartEvent)
            self._open.append(_Open(event.anchor, is_mapping))
            if len(self._open) > MAX_DEPTH:
                raise _fault(event, f"values are nested more than {MAX_DEPTH} levels deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = self._open.pop()
            self._add(closed.anchor, closed.size, event)

    def _see_key(self, event: yaml.ScalarEvent) -> None:
        parent = self._open[-1] if self._open else None
        # The children of a mapping alternate: key, value, key, value.
        if parent is None or not parent.is_mapping or parent.num_children % 2:
            return
        if event.value in parent.keys:
            raise _fault(event, f"duplicate key {event.value!r}")
        parent.keys.add(event.value)

    def _add(self, anchor: str | None, size: int, event: yaml.Event) -> None:
        """Count a finished value in its parent, and remember its size for aliases of its anchor."""
        if anchor is not None:
            self._sizes[anchor] = size
        if self._open:
            parent = self._open[-1]
            parent.num_children += 1
            parent.size += size
            if parent.size > MAX_VALUES:
                raise _fault(event, f"it has more than {MAX_VALUES:,} values with aliases expanded")


def _fault(event: yaml.Event, what: str) -> yaml.YAMLError:
    assert event.start_mark is not None
    return yaml.YAMLError(f"{what} (line {event.start_mark.line + 1})")
