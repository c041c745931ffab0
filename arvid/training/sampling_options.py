"""A model's sampling options out of a configuration.

A setting holds for all rows of a comparison, so its sampling options are those of several paradigms and heads: a model
takes its own, and ignores those of others. An option that nobody has is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from arvid import registry
from arvid.contracts import Paradigm, SamplingOptions, TokenType, UserError
from arvid.options import option_names
from arvid.training.instantiate import instantiate


def build_sampling(
    paradigm: type[Paradigm], token_type: TokenType, given: Mapping[str, Any]
) -> SamplingOptions:
    """The options of a model, as far as they are given, and else their defaults.

    Args:
        paradigm: class of the model's paradigm.
        token_type: of its tokens.
        given: options by name, as YAML has them; also such that only other paradigms or heads have.

    Raises UserError for an option that no known paradigm has, and for values of a wrong type or outside their ranges.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"model.sampling must be options by name, not {given!r}.")
    left = dict(given)
    options = _take(paradigm.options_for(token_type), left)
    for other in _other_classes(paradigm):
        if not left:
            break
        _take(other, left)
    if left:
        unknown, own = ", ".join(map(str, left)), ", ".join(option_names(type(options)))
        raise UserError(
            f"model.sampling: there is no option {unknown}. {paradigm.__name__} with {token_type} tokens has {own}."
        )
    return options


def _take(cls: type[SamplingOptions], left: dict[str, Any]) -> SamplingOptions:
    """The options of a class, out of those that are left."""
    mine = {name: left.pop(name) for name in option_names(cls) if name in left}
    return instantiate(cls, mine, what="model.sampling")


def _other_classes(paradigm: type[Paradigm]) -> Iterator[type[SamplingOptions]]:
    """The options of the paradigm's models, then those of the other paradigms, which are imported only then."""
    yield from map(paradigm.options_for, paradigm.heads)
    for name in registry.names("paradigms"):
        with suppress(UserError):  # a plug-in that cannot be imported
            other: type[Paradigm] = registry.get("paradigms", name)
            yield from map(other.options_for, other.heads)
