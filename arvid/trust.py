"""Packages that may be imported because a file or a dotted name asks for it: none, unless the user trusts them.

Checkpoints, records and protocols name classes. Short names and registered classes are always allowed (see
`arvid.registry`); any other class only if its package is trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from arvid.errors import UserError


def trust(packages: Iterable[str]) -> None:
    """Trust these packages (or modules) until the enclosing block of `trusting` ends.

    Raises UserError for an invalid package name.
    """
    added = frozenset(packages)
    for package in added:
        if not all(part.isidentifier() for part in package.split(".")):
            raise UserError(
                f"{package!r} cannot be trusted: it is not a package name such as my_package."
            )
    _trusted.set(_trusted.get() | added)


@contextmanager
def trusting(packages: Iterable[str]) -> Iterator[None]:
    """Inside the block these packages are trusted too. Raises UserError as `trust` does."""
    before = _trusted.set(_trusted.get())
    try:
        trust(packages)
        yield
    finally:
        _trusted.reset(before)


def is_trusted(path: str) -> bool:
    """Whether a dotted path is in a trusted package."""
    return any(path.startswith(f"{package}.") for package in _trusted.get())


_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())
