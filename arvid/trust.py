"""Which packages may be imported because a file or a dotted name asks for it: none, unless the user says so.

Checkpoints, records and protocols name what they are made of. Short names, and classes that an installed package
registers, are always taken (see `arvid.registry`); any other class only where its package is trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from arvid.errors import UserError


def trust(packages: Iterable[str]) -> None:
    """Trust these packages (or modules) until the block of `trusting` around ends.

    Raises UserError for what is no name of a package.
    """
    added = frozenset(packages)
    for package in added:
        if not all(part.isidentifier() for part in package.split(".")):
            raise UserError(f"{package!r} is no name of a package to trust, as my_package is.")
    _trusted.set(_trusted.get() | added)


@contextmanager
def trusting(packages: Iterable[str]) -> Iterator[None]:
    """Inside the block these packages are trusted, besides those that were before. Raises UserError as `trust` does."""
    before = _trusted.set(_trusted.get())
    try:
        trust(packages)
        yield
    finally:
        _trusted.reset(before)


def is_trusted(path: str) -> bool:
    """Whether a dotted path lies in a trusted package."""
    return any(path.startswith(f"{package}.") for package in _trusted.get())


_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())
