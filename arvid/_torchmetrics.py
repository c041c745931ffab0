"""Makes torchmetrics cheap to import: it imports each of its metrics when that is first asked for.

Lightning needs one class of torchmetrics, `Metric`. Its `__init__` imports all metrics, and with them torchvision,
transformers and scipy: half of what `import lightning` takes. Here a hook loads the two outermost `__init__` files and
puts off their imports of torchmetrics' own modules. `from torchmetrics import X` finds what it found before. A
torchmetrics that was imported before arvid stays as it is.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PACKAGES = ("torchmetrics", "torchmetrics.functional")
"""Not those inside, which have modules with the names of functions: Python sets such a name to the module as soon as
that is imported."""
_LATER = "_imported_later"


def defer_torchmetrics() -> None:
    """Have the imports of torchmetrics' `__init__` files put off."""
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the packages where they are, and has them loaded in the other way."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in PACKAGES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, InspectLoader):
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Runs an `__init__` without its imports, and puts a `__getattr__` in their place."""

    def __init__(self, loader: InspectLoader) -> None:
        self.loader = loader

    def exec_module(self, module: ModuleType) -> None:
        tree = ast.parse(self.loader.get_source(module.__name__) or "")
        tree = ast.fix_missing_locations(_PutOff(tree).visit(tree))
        later: dict[str, tuple[str, str]] = {}
        vars(module).update({_LATER: later, "__getattr__": lambda n: _import_now(module, later, n)})
        exec(compile(tree, str(module.__file__), "exec"), vars(module))
        if (
            module.__name__ == PACKAGES[0]
        ):  # whose modules import each other in a circle with one way in
            importlib.import_module(f"{PACKAGES[0]}.utilities")


def _import_now(module: ModuleType, later: dict[str, tuple[str, str]], name: str) -> Any:
    """A module's attribute that has not been imported, from where `later` says."""
    if name in later and later[name][0] != module.__name__:
        source, attribute = later[name]
        value = getattr(importlib.import_module(source), attribute)
        setattr(module, name, value)
        return value
    submodule = f"{module.__name__}.{name}"
    if any(f"{source}.{what}.".startswith(f"{submodule}.") for source, what in later.values()):
        return importlib.import_module(submodule)  # which sets the attribute
    raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")


class _PutOff(ast.NodeTransformer):
    """Turns `from torchmetrics.a import B as C` into `_imported_later["C"] = ("torchmetrics.a", "B")`."""

    def __init__(self, tree: ast.Module) -> None:
        self.used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        names = {alias.asname or alias.name: alias.name for alias in node.names}
        own = node.level == 0 and (node.module or "").partition(".")[0] == PACKAGES[0]
        if not own or "*" in names or names.keys() & self.used:  # the file itself needs it
            return node
        lines = [f"{_LATER}[{name!r}] = {(node.module, names[name])!r}" for name in names]
        return ast.parse("\n".join(lines)).body

    def visit_If(self, node: ast.If) -> Any:
        """Leaves out a patch of scipy for SRMRpy, a metric of speech that arvid has no use for."""
        imported = [n.name for x in node.body if isinstance(x, ast.Import) for n in x.names]
        return None if "scipy.signal" in imported else self.generic_visit(node)
