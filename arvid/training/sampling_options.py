"""A model's sampling options from a configuration.

A setting applies to all rows of a comparison, so it may hold sampling options of several paradigms and heads. A model
takes its own options and ignores those of others. An option that no model has is an error.
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
    """The sampling options of a model: those given, and defaults for the others.

    Args:
        paradigm: class of the model's paradigm.
        token_type: type of the model's tokens.
        given: options by name, as in YAML. Options of other paradigms or heads are checked and then ignored.

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
    """An instance of `cls` from its options in `left`, which are removed there."""
    mine = {name: left.pop(name) for name in option_names(cls) if name in left}
    return instantiate(cls, mine, what="model.sampling")


def _other_classes(paradigm: type[Paradigm]) -> Iterator[type[SamplingOptions]]:
    """Option classes of the paradigm's models, then of other paradigms, which are imported only when reached."""
    yield from map(paradigm.options_for, paradigm.heads)
    for name in registry.names("paradigms"):
        with suppress(UserError):  # a plug-in that cannot be imported
            other: type[Paradigm] = registry.get("paradigms", name)
            yield from map(other.options_for, other.heads)
