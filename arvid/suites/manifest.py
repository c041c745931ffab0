"""What the samples of a folder were drawn from: a file beside them, so that those of another model are not mixed in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arvid import registry
from arvid.errors import UserError
from arvid.files import write_json

MANIFEST = "sampling.json"


def claim(folder: Path, description: Mapping[str, Any]) -> None:
    """Write down what the samples are drawn from. Raises UserError where the folder says something else already."""
    wanted = json.loads(json.dumps(description))
    found = read_manifest(folder)
    if found is None:
        write_json(folder / MANIFEST, wanted)
    elif found != wanted and (found := _as_written_now(found)) != wanted:
        unlike = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        raise UserError(
            f"{folder} holds another sampling ({', '.join(unlike)} differ, see {MANIFEST}). "
            "Use another folder."
        )


def _as_written_now(value: Any) -> Any:
    """A manifest without the sampling options that are at their defaults, which earlier versions of arvid wrote too."""
    if not isinstance(value, dict):
        return value
    found = {key: _as_written_now(part) for key, part in value.items()}
    if isinstance(found.get("sampling"), dict) and isinstance(found.get("factors"), dict):
        found["sampling"] = _changed(found["sampling"], found["factors"])
    return found


def _changed(options: dict[str, Any], factors: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a model has and that are not at their defaults; all of them where the model is not known."""
    from arvid.training.sampling_options import build_sampling  # slow to import

    try:
        paradigm = registry.get("paradigms", factors["paradigm"])
        return build_sampling(paradigm, factors["token_type"], options).changed()
    except (UserError, KeyError):
        return options


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What its samples were drawn from; None for samples from elsewhere. Raises UserError for a damaged file."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}). Sample into another folder.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged (not a JSON object). Sample into another folder.")
    return found
