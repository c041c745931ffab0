"""Tokenizer files: one safetensors file with the tensors, the class's short name and its constructor arguments.

Only registered tokenizer classes are built from a file, and nothing in a file is unpickled.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arvid import registry
from arvid.contracts import UserError, VideoTokenizer
from arvid.files import sha256_file, sha256_json
from arvid.importing import Move, match
from arvid.sealed import Damaged
from arvid.tensor_files import load_tensors, save_tensors
from arvid.training.checkpoint_io import is_checkpoint, read_checkpoint, verifying
from arvid.training.instantiate import instantiate
from arvid.training.published import is_published

FORMAT = "arvid tokenizer 2"
UNSEALED = "arvid tokenizer 1"
"""Format of older files, which have no checksum."""
CHECKPOINT_PREFIX = "tokenizer."
CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth")

Description = dict[str, Any]


def describe(tokenizer: VideoTokenizer) -> Description:
    """Short name and constructor arguments as plain data. `build` makes an untrained copy from them.

    Raises UserError for a class that is not registered or has no `hyperparameters`.
    """
    hyperparameters = getattr(tokenizer, "hyperparameters", None)
    if not isinstance(hyperparameters, dict):
        raise UserError(
            f"{type(tokenizer).__name__} cannot be saved: it must keep its constructor arguments "
            "as plain data in the attribute `hyperparameters`."
        )
    return {"name": _short_name(type(tokenizer)), "hyperparameters": hyperparameters}


def build(description: Any) -> VideoTokenizer:
    """An untrained tokenizer from its description. Raises UserError for an unknown name or wrong arguments."""
    if not isinstance(description, Mapping) or not isinstance(description.get("name"), str):
        raise UserError(f"its description names no tokenizer: {description!r:.200}.")
    name, hyperparameters = description["name"], description.get("hyperparameters")
    cls = registry.get("tokenizers", name)
    what = f"{name} with {hyperparameters!r:.500}"
    tokenizer: VideoTokenizer = instantiate(cls, hyperparameters, what=what)
    return tokenizer


def save_tokenizer(
    tokenizer: VideoTokenizer,
    path: str | Path,
    record: Mapping[str, Any],
    *,
    half: bool = False,
) -> None:
    """Write a safetensors file that `load_tokenizer` reads.

    `record` (plain data) is the tokenizer's origin. `half` stores floats as fp16, which halves the file; loading
    converts them back to float32.
    """
    tensors = {
        name: value.half() if half and value.dtype == torch.float32 else value
        for name, value in tokenizer.state_dict().items()
    }
    metadata = {
        "format": FORMAT,
        "tokenizer": json.dumps(describe(tokenizer)),
        "record": json.dumps(dict(record)),
    }
    save_tensors(path, tensors, metadata)


def import_tokenizer(
    file: Path,
    out: Path,
    tensors: Mapping[str, Any],
    read_options: Callable[[], Mapping[str, Any]],
    published_names: Callable[[Any], Mapping[str, str]],
    *,
    name: str,
    model: str,
) -> list[Move]:
    """Write the tensors of a published tokenizer as a tokenizer file.

    Args:
        file: the published file, for messages and for the record of the origin.
        out: path of the tokenizer file.
        tensors: the published tensors of the tokenizer by name.
        read_options: returns the constructor arguments of the tokenizer. It may raise UserError.
        published_names: returns the published name of each of a tokenizer's tensors, by arvid's name.
        name: short name of the tokenizer's class.
        model: the published model in words, for messages.

    Raises UserError if the options are wrong, and with a list of tensors that do not fit.
    """
    try:
        with torch.device("meta"):  # only names and shapes: the weights come from the file
            tokenizer = build({"name": name, "hyperparameters": read_options()})
        state, moves = match(tensors, tokenizer.state_dict(), published_names(tokenizer))
    except UserError as error:
        raise UserError(f"{file}: not {model}: {error}") from error
    tokenizer.load_state_dict(state, assign=True)
    kind = name.replace("_", "-")
    save_tokenizer(
        tokenizer, out, {"imported": kind, "file": file.name, "sha256": sha256_file(file)}
    )
    return moves


def load_tokenizer(path_or_name: str | Path) -> VideoTokenizer:
    """A trained tokenizer, frozen and in eval mode, in float32 on the CPU.

    The argument is a file of `save_tokenizer`, a checkpoint of TokenizerModule, the short name of an embedded tokenizer
    (see `embedded`), or `NAME:SOURCE` for a published one. NAME is then the short name of a class whose method
    `from_published` takes the source. Raises UserError with the file and its fault.
    """
    name, _, source = str(path_or_name).partition(":")
    if source and name in registry.names("tokenizers"):
        tokenizer = _published(name, source)
    else:
        path = _find(path_or_name)
        try:
            description, tensors = _read(path)
            tokenizer = build(description)
            _fill(tokenizer, tensors)
        except UserError as error:
            if str(path) in str(error):
                raise
            raise UserError(f"{path}: {error}") from error
    return tokenizer.requires_grad_(False).eval()


def fingerprint(tokenizer: VideoTokenizer) -> str:
    """Hex SHA-256 over class, constructor arguments and every tensor. Equal hashes mean equal tokens."""
    digest = hashlib.sha256()
    cls = type(tokenizer)
    arguments = getattr(tokenizer, "hyperparameters", {})
    digest.update(sha256_json([cls.__module__, cls.__qualname__, arguments]).encode())
    for name, value in sorted(tokenizer.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def embedded() -> dict[str, Path]:
    """Files of the tokenizers that arvid ships, by short name."""
    folder = Path(str(files("arvid"))) / "assets"
    found = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
    return {name: path for name, path in found.items() if _is_tokenizer(path)}


def _short_name(cls: type[VideoTokenizer]) -> str:
    known = registry.names("tokenizers")
    last = cls.__module__.removeprefix("arvid.tokenizers.").split(".")[0]
    # The likely name first, because each further one costs an import.
    for name in sorted(known, key=lambda n: n != last):
        if registry.get("tokenizers", name) is cls:
            return name
    raise UserError(
        f"{cls.__module__}.{cls.__name__} is not a registered tokenizer, so no file can name it. "
        f"Known: {', '.join(known)}."
    )


def _published(name: str, source: str) -> VideoTokenizer:
    cls = registry.get("tokenizers", name)
    if not hasattr(cls, "from_published"):
        raise UserError(f"{name}:{source}: {name} cannot read published weights by NAME:SOURCE.")
    tokenizer: VideoTokenizer = cls.from_published(source)
    return tokenizer


def _find(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if is_checkpoint(path):
        return path
    known = embedded()
    if str(path_or_name) in known:
        return known[str(path_or_name)]
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a tokenizer file.")
    close = difflib.get_close_matches(str(path_or_name), known, n=1)
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    raise UserError(
        f"There is no tokenizer file {str(path_or_name)!r}, nor an embedded tokenizer of that name."
        f"{suggestion} Embedded: {', '.join(known) or 'none'}. A published one is named NAME:SOURCE, "
        "as in pretrained:FOLDER."
    )


def _is_tokenizer(path: Path) -> bool:
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("format") in (FORMAT, UNSEALED)


def _read(path: Path) -> tuple[Description, dict[str, Tensor]]:
    if path.suffix in CHECKPOINT_SUFFIXES or _holds_generator(path):
        return _read_checkpoint(path)
    return _read_file(path)


def _holds_generator(path: Path) -> bool:
    try:
        return is_published(path)
    except (SafetensorError, OSError):
        return False  # reading it as a tokenizer's file says what is wrong


def _read_file(path: Path) -> tuple[Description, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            stated = (file.metadata() or {}).get("format")
        if stated not in (FORMAT, UNSEALED):
            raise UserError("not a tokenizer file of arvid: its metadata do not name the format.")
        tensors, metadata = load_tensors(path, sealed=stated == FORMAT)
        return json.loads(metadata["tokenizer"]), tensors
    except Damaged as error:
        raise UserError(f"damaged: {error}. Take another copy of it.") from error
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"not a tokenizer file ({error}).") from error


def _read_checkpoint(path: Path) -> tuple[Description, dict[str, Tensor]]:
    """The tokenizer in a checkpoint. Its errors do not name the file: the caller adds the name."""
    with verifying(path):
        checkpoint = read_checkpoint(path, parts=("state_dict",))
    state = checkpoint.get("state_dict")
    if "tokenizer" not in checkpoint or not isinstance(state, dict):
        raise UserError("not a checkpoint of a tokenizer's training.")
    tensors = {
        name.removeprefix(CHECKPOINT_PREFIX): value
        for name, value in state.items()
        if isinstance(name, str) and name.startswith(CHECKPOINT_PREFIX)
    }
    return checkpoint["tokenizer"], tensors


def _fill(tokenizer: VideoTokenizer, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into the tokenizer. Raises UserError with a list of the tensors that do not fit."""
    own = tokenizer.state_dict()
    faults = [f"missing {name}" for name in own.keys() - tensors.keys()]
    faults += [f"unexpected {name}" for name in tensors.keys() - own.keys()]
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in tensors.items()}
    faults += [
        f"{name} is {shapes[name]}, not {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if tuple(own[name].shape) != shapes[name]
    ]
    if faults:
        raise UserError(f"its tensors do not fit {type(tokenizer).__name__}: {_listed(faults)}.")
    tokenizer.load_state_dict(tensors)


def _listed(faults: list[str], limit: int = 20) -> str:
    more = f"; and {len(faults) - limit} more" if len(faults) > limit else ""
    return "; ".join(sorted(faults)[:limit]) + more
