"""Builds objects from plain data in files: checkpoints, and YAML other than configurations of `arvid fit`.

The data cannot make anything be imported. It names a class by short name or path, and `arvid.registry` decides whether
that class is allowed. The arguments are parsed by the annotations of the constructor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings
from jsonargparse._common import parsing_settings
from jsonargparse._parameter_resolvers import ParamData, get_signature_parameters

from arvid import registry
from arvid.contracts import UserError
from arvid.training._explain import explain

T = TypeVar("T")


def parameters(cls: type[Any]) -> dict[str, ParamData]:
    """The parameters of a constructor by name, with default and annotation, as YAML files and `--help` know them.

    Where the constructor passes `**options` to another one, they include the parameters of that one, except those that
    the call gives. (`inspect.signature` would show `**options` only.)
    """
    return {parameter.name: parameter for parameter in get_signature_parameters(cls)}


def instantiate(
    cls: type[T], config: Any, *, what: str, given: Mapping[str, Any] | None = None
) -> T:
    """Build a `cls` from its constructor's arguments.

    Args:
        cls: the class; its annotations give the types of the arguments.
        config: arguments by name, as plain data.
        what: name of the object in error messages.
        given: arguments that are already objects.

    Raises UserError, worded by `arvid.training._explain`, if it cannot be built.
    """
    given = given or {}
    try:
        return _bound(cls, config, skip=set(given))(**given)
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(f"{what} cannot be built: {explain(str(error))}") from error


def bind(cls: type[T], config: Any, *, what: str, positional: int) -> partial[T]:
    """A partial `cls` with its own options bound; the caller gives the first `positional` arguments.

    Raises UserError as `instantiate` does.
    """
    try:
        return _bound(cls, config, skip={positional})
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(f"{what} cannot be built: {explain(str(error))}") from error


def build(kind: registry.Kind, config: Any, *, what: str) -> Any:
    """An object of the registered class in `class_path` of `config`; `init_args` are its arguments.

    An argument may itself be an object of the same kind (a dataset of windows has a dataset). Raises UserError for an
    unregistered class, and as `instantiate` does.
    """
    cls, arguments = named(kind, config, what=what)
    inner = {k: build(kind, v, what=what) for k, v in arguments.items() if _names_a_class(v)}
    plain = {k: v for k, v in arguments.items() if k not in inner}
    return instantiate(cls, plain, what=what, given=inner)


def named(kind: registry.Kind, config: Any, *, what: str) -> tuple[type[Any], dict[str, Any]]:
    """The class in `class_path`, and the arguments in `init_args`.

    Raises UserError if `config` has another form, and as `arvid.registry.get` does.
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
    """The class with its arguments converted to their annotated types: tuples, paths, dataclasses."""
    if not isinstance(config, Mapping):
        raise TypeError(f"its arguments are {config!r}.")
    _refuse_classes(config)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "built", skip=skip)
    with _importing_only("arvid", cls.__module__.partition(".")[0]):
        parsed = parser.parse_object({"built": dict(config)})
        # The instantiator `_bind` makes a partial, so the caller can still add arguments.
        bound: partial[T] = parser.instantiate(parsed, instantiators=[(_bind, cls, False)])["built"]
    return bound


def _bind(cls: type[T], *args: Any, **kwargs: Any) -> partial[T]:
    return partial(cls, *args, **kwargs)


def _refuse_classes(config: Any) -> None:
    """Raise TypeError if an argument, at any depth, names a class to build."""
    values = list(config.values()) if isinstance(config, Mapping) else config
    if _names_a_class(config):
        raise TypeError(f"{config['class_path']!r} cannot be an argument.")
    for value in values:
        if isinstance(value, Mapping | list | tuple):
            _refuse_classes(value)


@contextmanager
def _importing_only(*packages: str) -> Iterator[None]:
    """Inside the block the parser may import from these packages only.

    The parser imports the dataclasses of annotations by name, so the package of the built class must be allowed. The
    policy is global to the process and is restored at the end.
    """
    before = dict(parsing_settings)
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(packages))
    try:
        yield
    finally:
        parsing_settings.update(before)
