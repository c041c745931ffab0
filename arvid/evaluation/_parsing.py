"""Parses JSON and YAML values into frozen dataclasses by their annotations. Errors name the key."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class ParseError(ValueError):
    """A JSON value that does not match its annotation; the message names the key."""


def parse(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a dataclass, tuple[X, ...], dict[str, X], a union, a Literal, bool, int, float, str or Any.

    Raises ParseError, whose message begins with `where` (the dotted key of the value).
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, where)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _parse_union(get_args(kind), value, where)
    if origin is Literal:
        if value in get_args(kind):
            return value
        choices = ", ".join(map(str, get_args(kind)))
        raise ParseError(f"{where}: {value!r} is none of {choices}")
    if origin is tuple:
        items = _expect(list, value, where)
        return tuple(parse(get_args(kind)[0], v, f"{where}[{i}]") for i, v in enumerate(items))
    if origin is dict:
        pairs = _expect(dict, value, where).items()
        return {str(k): parse(get_args(kind)[1], v, f"{where}.{k}") for k, v in pairs}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _expect(kind, value, where)


def _parse_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    # the last kind is parsed outside the loop, so that its error reaches the reader
    *others, last = (kind for kind in kinds if kind is not type(None))
    for kind in others:
        try:
            return parse(kind, value, where)
        except ParseError:
            continue
    return parse(last, value, where)


def _parse_dataclass(kind: Any, value: Any, where: str) -> Any:
    given = _expect(dict, value, where)
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.metadata.get("stored", True)}
    prefix = f"{where}." if where else ""
    if unknown := sorted(set(given) - set(fields)):
        raise ParseError(f"{prefix}{unknown[0]}: unknown key")
    required = [n for n, f in fields.items() if f.default is f.default_factory]  # both are MISSING
    if missing := [n for n in required if n not in given]:
        raise ParseError(f"{prefix}{missing[0]}: missing")
    parsed = {n: parse(hints[n], v, prefix + n) for n, v in given.items()}
    try:
        return kind(**parsed)
    except ValueError as error:
        raise ParseError(f"{where}: {error}" if where else str(error)) from error


def _expect(kind: type, value: Any, where: str) -> Any:
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):  # bool is an int
        return value
    raise ParseError(f"{where or 'record'}: {type(value).__name__} instead of {kind.__name__}")
