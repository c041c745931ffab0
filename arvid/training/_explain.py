"""What is wrong with a configuration, in words for the person who wrote it."""

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
    """Whether the configuration parser raised it: as such, or while it built what a configuration describes."""
    return isinstance(error, ArgumentError) or str(error).startswith("Does not validate")


def explain(message: str) -> str:
    """The message of a configuration parser without what only its authors can read, and with a suggestion."""
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


def _suggest(name: str, known: list[str], place: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{place}.{close[0]}'?" if close else ""


def _modules(package: str) -> list[str]:
    """Of a package that has been imported; a message must not make another one be."""
    folder = getattr(sys.modules.get(package), "__path__", [])
    return [module.name for module in pkgutil.iter_modules(folder)]
