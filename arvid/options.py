"""Sampling options. Each head and paradigm declares its own; a model has those of its paradigm and its head.

    @dataclass(frozen=True, kw_only=True)
    class MySampling(SamplingOptions):
        rounds: int = option(1, at_least(1))
        "Evaluations for each block."

Command lines, YAML keys and help texts are made from the fields. Commands parse their arguments with this module, so it
imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self, TypeVar, cast

from arvid.errors import UserError
from arvid.ranges import FINITE, Range

T = TypeVar("T")
RANGE = "range"
"""Key of the range in a field's metadata."""


def option(default: T, allowed: Range) -> T:
    """Declare a numeric field with its default and range. (A plain default allows any finite number.)"""
    return field(default=default, metadata={RANGE: allowed})


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Sampling options common to all models. Raises UserError for values outside their ranges."""

    guidance: float = 1.0
    """Classifier-free guidance scale s: null + s · (conditional - null). 1 switches it off."""
    use_cache: bool = True
    """Cache keys and values of finished positions. Without it sampling is slower and gives the same tokens."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, (str, bool)):
                range_of(f).require(**{f.name: value})

    @property
    def guided(self) -> bool:
        """Whether an unconditional pass is needed."""
        return self.guidance != 1

    @property
    def truncates_pixels(self) -> bool:
        """Whether pixels become bytes by truncation, as in some published code, instead of rounding."""
        return False

    def changed(self) -> dict[str, Any]:
        """Options that differ from their defaults. Records store these."""
        pairs = ((f, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {f.name: value for f, value in pairs if value != f.default}

    def replace(self, **changes: Any) -> Self:
        """A copy with some options changed. Raises UserError for an option that this class does not have."""
        _require_known(type(self), changes)
        return dataclasses.replace(self, **changes)

    @classmethod
    def of(cls, given: SamplingOptions) -> Self:
        """The given options as an instance of this class; options that they lack get defaults.

        Raises UserError if they change an option that this class does not have.
        """
        if isinstance(given, cls):
            return given
        changed = given.changed()
        _require_known(cls, changed)
        return cls(**changed)


def option_names(cls: type[SamplingOptions]) -> list[str]:
    """Names of the options of a class."""
    return [f.name for f in dataclasses.fields(cls)]


def range_of(f: dataclasses.Field[Any]) -> Range:
    """The range of a field's values."""
    allowed: Range = f.metadata.get(RANGE, FINITE)
    return allowed


def help_texts(cls: type[SamplingOptions]) -> dict[str, str]:
    """The docstring of each option, in one line."""
    from docstring_parser import parse_from_object  # slow to import

    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if dataclasses.is_dataclass(owner):
            params = parse_from_object(owner).params
            found |= {p.arg_name: " ".join((p.description or "").split()) for p in params}
    return found


def compose(*owners: type[SamplingOptions]) -> type[SamplingOptions]:
    """A dataclass that inherits from the option classes of several owners, and so has all their options.

    The same owners give the same class. Raises TypeError if two of them declare an option of the same name.
    """
    return _composed(owners)


@lru_cache
def _composed(owners: tuple[type[SamplingOptions], ...]) -> type[SamplingOptions]:
    # Leave out owners that are base classes of other owners: Python refuses bases whose order contradicts an MRO.
    needed = [a for a in dict.fromkeys(owners) if not _covered(a, owners)]
    if len(needed) == 1:
        return needed[0]
    shared = set(option_names(SamplingOptions))
    for i, cls in enumerate(needed):
        earlier = {name for other in needed[:i] for name in option_names(other)}
        if twice := set(option_names(cls)) & earlier - shared:
            raise TypeError(f"{' and '.join(c.__name__ for c in needed)} both have {min(twice)}.")
    name = "With".join(cls.__name__ for cls in needed)
    made = dataclasses.make_dataclass(
        name, [], bases=tuple(needed), namespace={"__module__": __name__}, frozen=True, kw_only=True
    )
    return cast("type[SamplingOptions]", made)


def _covered(cls: type, owners: Iterable[type]) -> bool:
    """Whether another owner is a subclass of `cls`."""
    return any(issubclass(other, cls) and other is not cls for other in owners)


def _require_known(cls: type[SamplingOptions], names: Iterable[str]) -> None:
    known = option_names(cls)
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"This model has no sampling option {', '.join(unknown)}. It has {', '.join(known)}."
        )
