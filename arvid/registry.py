"""The registry: short name -> class, for all parts that a configuration, a command or a file can name.

Built-in paradigms and tokenizers are the folders `paradigms/<name>` and `tokenizers/<name>`. The folder's name is the
short name, and its package exposes exactly one class that fulfils the contract (among `__all__`, or else among all
public names). An importer or exporter is a module of such a folder: `paradigms/nova/import_nova.py` is the importer
`nova`. All other built-in parts are in the tables below. Other packages add theirs by entry points of the group
`arvid.<kind>`, such as `arvid.paradigms`.

Listing names imports none of them; getting a class imports one module. A class that nobody registered is only imported
from a package that the user trusts (see `arvid.trust`).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, get_args

from arvid.errors import UserError
from arvid.trust import is_trusted

Kind = Literal[
    "paradigms",
    "tokenizers",
    "text_encoders",
    "conditions",
    "datasets",
    "metrics",
    "importers",
    "exporters",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

CONTRACTS: dict[Kind, str] = {
    "paradigms": "arvid.contracts:Paradigm",
    "tokenizers": "arvid.contracts:VideoTokenizer",
    "text_encoders": "arvid.nn.text:TextEncoder",
    "conditions": "arvid.nn.conditions:ConditionType",
    "datasets": "arvid.contracts:VideoDataset",
    "metrics": "arvid.evaluation.scores:Score",
    "importers": "arvid.importing:Importer",
    "exporters": "arvid.importing:Exporter",
}
MODULE_PREFIXES: dict[Kind, str] = {"importers": "import_", "exporters": "export_"}
"""Prefix of the module names for these kinds in a plug-in's folder."""
OWN = ("arvid.data.", "arvid.nn.", "arvid.paradigms.", "arvid.tokenizers.")
"""Packages of arvid whose classes need no registration, such as the text encoder of a paradigm."""
TABLES: dict[Kind, dict[str, str]] = {
    "conditions": {
        "action_vectors": "arvid.nn.conditions:ActionVectors",
        "actions": "arvid.nn.conditions:Actions",
        "fps": "arvid.nn.conditions:Fps",
        "label": "arvid.nn.conditions:Label",
        "motion": "arvid.nn.conditions:Motion",
    },
    "datasets": {
        "huggingface_videos": "arvid.data.huggingface:HuggingFaceVideos",
        "keyboard_sprites": "arvid.data.keyboard_sprites:KeyboardSprites",
        "sprites": "arvid.data.sprites:Sprites",
        "token_shards": "arvid.data.token_shards:TokenShards",
        "video_folder": "arvid.data.folder:VideoFolder",
        "video_manifest": "arvid.data.manifest:VideoManifest",
        "webdataset": "arvid.data.webdataset:WebDataset",
        "windows": "arvid.data.windows:Windows",
    },
    "importers": {
        "far": "arvid.released.far:FarImporter",
        "mar": "arvid.released.mar:MarImporter",
    },
    "exporters": {"checkpoint": "arvid.training.one_file:CheckpointExporter"},
    "text_encoders": {
        "huggingface": "arvid.nn.text:HuggingFaceTextEncoder",
        "words": "arvid.nn.text:WordTextEncoder",
    },
    "metrics": {
        "action-accuracy": "arvid.evaluation.scores.actions:Actions",
        "attributes": "arvid.evaluation.scores.attributes:Attributes",
        "attributes-over-time": "arvid.evaluation.scores.attributes:AttributesOverTime",
        "class-accuracy": "arvid.evaluation.scores.training:ClassAccuracy",
        "fd-efficientnet": "arvid.evaluation.scores.distances:FdEfficientNet",
        "fd-pixels": "arvid.evaluation.scores.distances:FdPixels",
        "fd-sprites": "arvid.evaluation.scores.distances:FdSprites",
        "flicker": "arvid.evaluation.scores.changes:Flicker",
        "fvd": "arvid.evaluation.scores.distances:Fvd",
        "fvd-limit": "arvid.evaluation.scores.distances:FvdLimit",
        "fvd-over-time": "arvid.evaluation.scores.distances:FvdOverTime",
        "fvd-videomae": "arvid.evaluation.scores.distances:FvdVideoMAE",
        "jedi": "arvid.evaluation.scores.distances:Jedi",
        "kvd": "arvid.evaluation.scores.distances:Kvd",
        "lpips": "arvid.evaluation.scores.paired:LpipsScore",
        "lpips-nbp": "arvid.evaluation.scores.paired:LpipsNbpScore",
        "lpips-squeeze": "arvid.evaluation.scores.paired:LpipsSqueezeScore",
        "lpips-vgg": "arvid.evaluation.scores.paired:LpipsVggScore",
        "motion": "arvid.evaluation.scores.changes:Motion",
        "ms-ssim": "arvid.evaluation.scores.paired:MsSsimScore",
        "ms-ssim-nbp": "arvid.evaluation.scores.paired:MsSsimNbpScore",
        "nearest-training": "arvid.evaluation.scores.training:NearestTraining",
        "psnr": "arvid.evaluation.scores.paired:PsnrScore",
        "psnr-pooled": "arvid.evaluation.scores.paired:PsnrPooledScore",
        "rfvd": "arvid.evaluation.scores.distances:Rfvd",
        "ssim": "arvid.evaluation.scores.paired:SsimScore",
    },
}
"""Built-in parts in the core: short name -> 'module:Class'."""


def names(kind: Kind) -> list[str]:
    """Known short names of a kind, sorted. Imports none of the parts."""
    return sorted(_known(kind))


def get(kind: Kind, name: str) -> type[Any]:
    """The class with a short name ('nova') or a dotted path ('arvid.paradigms.nova.NOVA').

    A path must be of a registered class, of a part of arvid, or in a trusted package. Raises UserError for an unknown
    name (with a suggestion and the known names), an untrusted path, a plug-in that cannot be imported, and a class that
    does not fulfil the contract of its kind.
    """
    known = _known(kind)
    if name in known:
        return _load(kind, name, known[name])
    if "." not in name:
        raise UserError(_unknown(kind, name, sorted(known)))
    registered = _registered(kind, name, known)
    if registered is not None:
        return registered
    if not (is_trusted(name) or name.startswith(OWN)):
        raise UserError(_untrusted(kind, name))
    return _load(kind, name, ":".join(name.replace(":", ".").rsplit(".", 1)))


def is_registered(kind: Kind, path: str) -> bool:
    """Whether files may name a class by this dotted path without trust."""
    return path.startswith(OWN) or _registered(kind, path, _known(kind)) is not None


def _registered(kind: Kind, path: str, known: dict[str, str]) -> type[Any] | None:
    """The registered class with a dotted path, or None. Imports only registered modules."""
    package, _, attribute = path.replace(":", ".").rpartition(".")
    for name, target in known.items():
        home, _, cls = target.partition(":")
        if cls:  # the package may re-export the class under a shorter path
            likely = cls == attribute and package.split(".")[0] == home.split(".")[0]
        else:
            likely = f"{package}.".startswith(f"{home}.")
        if likely and (found := _load(kind, name, target)).__name__ == attribute:
            return found
    return None


def _load(kind: Kind, name: str, target: str) -> type[Any]:
    """The class at 'module:Class', or the only one of its kind in 'module'."""
    module_name, _, attribute = target.partition(":")
    module = _import(module_name, name)
    contract = _contract(kind)
    found = _attribute(module, attribute) if attribute else _only_class(module, contract)
    if not (isinstance(found, type) and issubclass(found, contract)):
        raise UserError(f"{name!r} is {found!r}, which is not a subclass of {contract.__name__}.")
    return found


def _known(kind: Kind) -> dict[str, str]:
    """Known name -> 'module:Class', or 'module' for a built-in folder."""
    if kind in MODULE_PREFIXES:
        known = _modules(MODULE_PREFIXES[kind]) | TABLES.get(kind, {})
    elif kind in TABLES:
        known = dict(TABLES[kind])
    else:
        known = _folders(kind)
    folders = tuple((folder, _changed(folder)) for folder in sys.path)
    for point in _announced(entry_points, f"arvid.{kind}", folders):
        if point.name in known:
            raise UserError(
                f"Two {kind} are called {point.name!r}: {known[point.name]} and {point.value} "
                f"(package {point.dist.name if point.dist else 'unknown'}). Rename or uninstall one."
            )
        known[point.name] = point.value
    return known


@lru_cache(maxsize=64)
def _announced(
    read: Callable[..., Iterable[EntryPoint]], group: str, _folders: tuple[tuple[str, int], ...]
) -> tuple[EntryPoint, ...]:
    """Entry points of a group. They are read once for a state of the folders: reading takes 5 ms with 100 packages."""
    return tuple(read(group=group))


def _changed(folder: str) -> int:
    """When a folder changed last, as by installing a package: nanoseconds, or 0 if there is none."""
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


def _folders(kind: Kind) -> dict[str, str]:
    """Packages inside the linked folder `arvid/<kind>`, found without importing them."""
    spec = find_spec(f"arvid.{kind}")
    if spec is None or spec.submodule_search_locations is None:
        raise UserError(
            f"arvid/{kind} is not a folder: its symbolic link is broken. See `arvid doctor`."
        )
    modules = pkgutil.iter_modules(list(spec.submodule_search_locations))
    return {m.name: f"arvid.{kind}.{m.name}" for m in modules if m.ispkg}


def _modules(prefix: str) -> dict[str, str]:
    """Modules of built-in plug-ins with this name prefix, by the rest of the name with dashes."""
    packages = {**_folders("paradigms"), **_folders("tokenizers")}.values()
    found = {}
    for package in packages:
        _, kind, name = package.split(".")
        (folder,) = find_spec(f"arvid.{kind}").submodule_search_locations  # type: ignore[union-attr, misc]
        for module in pkgutil.iter_modules([f"{folder}/{name}"], f"{package}."):
            stem = module.name.rpartition(".")[2]
            if stem.startswith(prefix):
                found[stem.removeprefix(prefix).replace("_", "-")] = module.name
    return found


def _unknown(kind: Kind, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=1)
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    return f"There is no {_singular(kind)} called {name!r}.{suggestion} Known: {', '.join(known) or 'none'}."


def _untrusted(kind: Kind, path: str) -> str:
    package = path.split(".")[0]
    return (
        f"{path!r} is not a {_singular(kind)} that arvid or an installed package registers, so it is not imported. If "
        f"you know the package {package!r}, trust it: --trust {package}, in Python trust=[{package!r}]. "
        "Or register the class by an entry point (docs/extending.md)."
    )


def _singular(kind: Kind) -> str:
    return kind[:-1].replace("_", " ")


def _import(module_name: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{module_name}.".startswith(f"{missing}."):
            raise UserError(f"{name!r} cannot be found: there is no module {missing!r}.") from error
        raise UserError(
            f"{name!r} needs the package {missing!r}, which is not installed."
        ) from error


def _attribute(module: ModuleType, attribute: str) -> Any:
    if not hasattr(module, attribute):
        close = difflib.get_close_matches(attribute, dir(module), n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{module.__name__} has no {attribute!r}.{suggestion}")
    return getattr(module, attribute)


def _only_class(module: ModuleType, contract: type[Any]) -> type[Any]:
    """The one concrete subclass of the contract among the module's public names."""
    public = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
    found = {
        value for value in (getattr(module, n) for n in public) if _is_concrete(value, contract)
    }
    if len(found) != 1:
        classes = ", ".join(sorted(cls.__name__ for cls in found)) or "none"
        raise UserError(
            f"{module.__name__} must expose exactly one {contract.__name__} (by __all__), not: {classes}."
        )
    return found.pop()


def _is_concrete(value: Any, contract: type[Any]) -> bool:
    return isinstance(value, type) and issubclass(value, contract) and not inspect.isabstract(value)


def _contract(kind: Kind) -> type[Any]:
    module_name, _, attribute = CONTRACTS[kind].partition(":")
    contract: type[Any] = getattr(importlib.import_module(module_name), attribute)
    return contract
