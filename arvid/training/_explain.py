"""Error messages of the configuration parser, rewritten for the person who wrote the configuration."""

from __future__ import annotations

import difflib
import pkgutil
import re
import sys

from jsonargparse import ArgumentError

_NO_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_NO_MODULE = re.compile(r"No module named '([\w.]+)'")
_NOISE = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "- Expected a <class 'NoneType'>",
    "Given value",
)


def is_configuration_error(error: Exception) -> bool:
    """Whether jsonargparse raised the error, when it parsed a configuration or when it built the objects."""
    return isinstance(error, ArgumentError) or str(error).startswith("Does not validate")


def explain(message: str) -> str:
    """A message of jsonargparse without its internals, and with a suggestion for a misspelled name."""
    if found := _NO_ATTRIBUTE.search(message):
        module, name = found.groups()
        names = [n for n in vars(sys.modules.get(module, object)) if not n.startswith("_")]
        return f"There is no {module}.{name}.{_suggest(name, names, module)}"
    if found := _NO_MODULE.search(message):
        package, _, name = found.group(1).rpartition(".")
        return f"There is no module {found.group(1)}.{_suggest(name, _modules(package), package)}"
    lines = [line.strip() for line in message.splitlines()]
    kept = [line.removeprefix("- ") for line in lines if line and not line.startswith(_NOISE)]
    return " ".join(kept)


def _suggest(name: str, known: list[str], parent: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{parent}.{close[0]}'?" if close else ""


def _modules(package: str) -> list[str]:
    """Names of a package's modules. Empty if the package is not imported: an error message must import nothing."""
    folder = getattr(sys.modules.get(package), "__path__", [])
    return [module.name for module in pkgutil.iter_modules(folder)]
