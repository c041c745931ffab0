"""Objects from plain data, as YAML files and checkpoints hold them."""

from __future__ import annotations

from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from arvid.contracts import UserError
from arvid.training._explain import explain

T = TypeVar("T")


def instantiate(cls: type[T], config: Any, *, what: str, subclass: bool = False) -> T:
    """Build a `cls` from its constructor's arguments.

    Args:
        cls: the class, whose annotations say what the arguments must be.
        config: the arguments by name; with `subclass` a dict of `class_path` and `init_args` that names a subclass.
        what: what an error message calls it.
        subclass: whether `config` names the class.

    Raises UserError in the words of `arvid.training._explain` if it cannot be built.
    """
    parser = ArgumentParser(exit_on_error=False)
    if subclass:
        parser.add_subclass_arguments(cls, "built")
    else:
        parser.add_class_arguments(cls, "built")
    try:
        built = parser.instantiate(parser.parse_object({"built": config}))["built"]
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(f"{what} cannot be built: {explain(str(error))}") from error
    assert isinstance(built, cls)
    return built
