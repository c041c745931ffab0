"""Constructor arguments as plain data, which a file can store to rebuild the module."""

from __future__ import annotations

import dataclasses
from typing import Any


def plain(**arguments: Any) -> dict[str, Any]:
    """Arguments as JSON data: dataclasses become dicts, sequences become lists. Raises TypeError for other objects."""
    return {name: _plain(value) for name, value in arguments.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
