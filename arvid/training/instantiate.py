"""Objects from plain data, as files hold them: checkpoints, and YAML that is no configuration of `arvid fit`.

Nothing is imported because the data says so. A class is named by its short name or path, and `arvid.registry` decides
whether it may be; its arguments are parsed by the annotations of its constructor, whatever these would import.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from jsonargparse._common import parsing_settings

from arvid import registry
from arvid.contracts import UserError
from arvid.training._explain import explain

T = TypeVar("T")


def instantiate(
    cls: type[T], config: Any, *, what: str, given: Mapping[str, Any] | None = None
) -> T:
    """Build a `cls` from its constructor's arguments.

    Args:
        cls: the class, whose annotations say what the arguments must be.
        config: the arguments by name, as plain data.
        what: what an error message calls it.
        given: arguments that are objects already.

    Raises UserError in the words of `arvid.training._explain` if it cannot be built.
    """
    given = given or {}
    try:
        return _bound(cls, config, skip=set(given))(**given)
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(f"{what} cannot be built: {explain(str(error))}") from error


def bind(cls: type[T], config: Any, *, what: str, positional: int) -> partial[T]:
    """A `cls` with its own options bound; its first `positional` arguments are left to the caller.

    Raises UserError as `instantiate` does.
    """
    try:
        return _bound(cls, config, skip={positional})
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(f"{what} cannot be built: {explain(str(error))}") from error


def build(kind: registry.Kind, config: Any, *, what: str) -> Any:
    """An object of a registered class, which `config` names by `class_path`; `init_args` are its arguments.

    Among the arguments there may be others of its kind (a dataset of windows has a dataset). Raises UserError for
    another class, and as `instantiate` does.
    """
    cls, arguments = named(kind, config, what=what)
    inner = {k: build(kind, v, what=what) for k, v in arguments.items() if _names_a_class(v)}
    plain = {k: v for k, v in arguments.items() if k not in inner}
    return instantiate(cls, plain, what=what, given=inner)


def named(kind: registry.Kind, config: Any, *, what: str) -> tuple[type[Any], dict[str, Any]]:
    """The class that `class_path` names, and the arguments in `init_args`.

    Raises UserError for another `config`, and as `arvid.registry.get` does.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("class_path"), str):
        raise UserError(f"{what} cannot be built: it names no class ({config!r}).")
    arguments = config.get("init_args") or {}
    if not isinstance(arguments, Mapping):
        raise UserError(f"{what} cannot be built: its arguments are {arguments!r}.")
    return registry.get(kind, config["class_path"]), dict(arguments)


def _names_a_class(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value


def _bound(cls: type[T], config: Any, *, skip: set[Any]) -> partial[T]:
    """The class with its arguments as their annotations want them: tuples, paths, dataclasses."""
    if not isinstance(config, Mapping):
        raise TypeError(f"its arguments are {config!r}.")
    _refuse_classes(config)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "built", skip=skip)
    with _importing_only("arvid", cls.__module__.partition(".")[0]):
        parsed = parser.parse_object({"built": dict(config)})
        bound: partial[T] = parser.instantiate(parsed, instantiators=[(_bind, cls, False)])["built"]
    return bound


def _bind(cls: type[T], *args: Any, **kwargs: Any) -> partial[T]:
    return partial(cls, *args, **kwargs)


def _refuse_classes(config: Any) -> None:
    """Raise TypeError if there is a class to be built anywhere in the arguments."""
    values = list(config.values()) if isinstance(config, Mapping) else config
    if _names_a_class(config):
        raise TypeError(f"{config['class_path']!r} cannot be an argument.")
    for value in values:
        if isinstance(value, Mapping | list | tuple):
            _refuse_classes(value)


@contextmanager
def _importing_only(*packages: str) -> Iterator[None]:
    """Let the parser import nothing that a value names, but for these packages.

    It names the dataclasses of annotations to itself, so those of the class that is built must be allowed. Its policy
    holds for the whole process: it is put back.
    """
    before = dict(parsing_settings)
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(packages))
    try:
        yield
    finally:
        parsing_settings.update(before)
