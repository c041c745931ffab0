"""Hash of the code that an evaluation's numbers depend on. With an equal hash nothing is scored again.

From arvid it covers the modules that scoring imports and those of the classes in use. Comments, docstrings and format
do not change it. Commands, reports, documents and training configurations are not covered. Other packages count if they
provide a class in use (torch, diffusers, a plug-in), with their public version and the file of the class. Versions of
CUDA and of file-reading libraries do not count. Python's minor version may count, since syntax trees depend on it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import arvid
from arvid.data._ledger import Ledger
from arvid.files import cache_dir, sha256_file, sha256_json
from arvid.registry import KINDS, TABLES

PACKAGE = "arvid"
ENTRIES = (
    "arvid.evaluation.rows",
    "arvid.evaluation.harness",
    *(place.partition(":")[0] for place in TABLES["datasets"].values()),
)
"""Modules that every evaluation runs. A dataset may contain another dataset, so all of arvid's are included."""


def code_identity(classes: Iterable[type]) -> str:
    """Hash of the code of these classes, their bases, and the modules of arvid that these import."""
    names = {base.__module__ for cls in classes for base in cls.__mro__}
    own = {name for name in names if _top(name) == PACKAGE}
    others = {n for n in names - own if _top(n) not in sys.stdlib_module_names}
    return sha256_json(
        [
            _own_sources(frozenset(own)),
            {name: _source_file(name) for name in others},
            {top: _version(top) for top in map(_top, others)},
        ]
    )


@cache
def _own_sources(names: frozenset[str]) -> str:
    root = Path(arvid.__file__).parent
    assets = {path.name: sha256_file(path) for path in root.glob("assets/*.safetensors")}
    return sha256_json([source_hashes(root, {*ENTRIES, *names}), assets])


def source_hashes(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Hashes of modules and of everything they import from the package in the folder `root`, by module name.

    Missing modules are left out, and so is the package's own `__init__`, which holds its version.
    """
    ledger = Ledger(cache_dir() / "sources.jsonl")
    found: dict[str, str] = {}
    # transitive closure of the imports
    seen, waiting = set(names), list(names)
    while waiting:
        name = waiting.pop()
        path = _path(root, name)
        if path is None:
            continue
        found[name], imported = _known(ledger, path, root.name)
        waiting += [n for n in imported if n not in seen]
        seen.update(imported)
    return found


def _known(ledger: Ledger, path: Path, package: str) -> tuple[str, list[str]]:
    """Hash of a file's code, and its imports from the package. Each file content is parsed only once."""
    key = [sys.version_info[:2], package, sha256_file(path)]
    value = ledger.get(key)
    if value is None:
        tree = ast.parse(path.read_bytes())
        value = [sha256_json(_plain(tree)), sorted(set(_imports(tree, package)))]
        ledger.add(key, value)
    return value[0], value[1]


def _plain(tree: ast.Module) -> str:
    """The syntax tree without docstrings, comments and line numbers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)]
    return ast.dump(tree)


def _is_text(line: ast.stmt) -> bool:
    """Whether a statement is a bare string: the docstring of a function, class or attribute."""
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Names that a file imports from the package, anywhere in it. Some are names of objects, not of modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _top(alias.name) == package)
        elif isinstance(node, ast.ImportFrom) and node.module and _top(node.module) == package:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _path(root: Path, name: str) -> Path | None:
    """The file of a module of the package."""
    folder = root.joinpath(*name.split(".")[1:])
    if folder == root:
        return None
    candidates = (folder.with_name(f"{folder.name}.py"), folder / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _source_file(name: str) -> str | None:
    """Hash of the source file of another package's module; None for a compiled module."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return sha256_file(file) if file and file.endswith(".py") else None


@cache
def _version(package: str) -> str | None:
    """Public part of an installed package's version (2.9.0 for 2.9.0+cu128); None if unknown.

    A plug-in whose distribution has another name than its module is found by its entry points.
    """
    try:
        found: str | None = version(package)
    except PackageNotFoundError:
        points = (point for kind in KINDS for point in entry_points(group=f"{PACKAGE}.{kind}"))
        versions = (p.dist.version for p in points if p.dist and _top(p.module) == package)
        found = next(versions, None)
    return found and found.partition("+")[0]
