"""Manifest of a folder of samples: model, seed and prompts. It prevents mixing samples of different models."""

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
    """Write the manifest of a folder. Raises UserError if the folder has a different manifest."""
    wanted = json.loads(json.dumps(description))
    found = read_manifest(folder)
    if found is None:
        write_json(folder / MANIFEST, wanted)
    elif found != wanted and (found := _in_current_form(found)) != wanted:
        different = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        raise UserError(
            f"{folder} holds other samples ({', '.join(different)} differ, see {MANIFEST}). "
            "Use another folder."
        )


def _in_current_form(value: Any) -> Any:
    """The manifest without sampling options at their defaults. Earlier versions of arvid also wrote these."""
    if not isinstance(value, dict):
        return value
    found = {key: _in_current_form(part) for key, part in value.items()}
    if isinstance(found.get("sampling"), dict) and isinstance(found.get("factors"), dict):
        found["sampling"] = _changed(found["sampling"], found["factors"])
    return found


def _changed(options: dict[str, Any], factors: Mapping[str, Any]) -> dict[str, Any]:
    """The model's sampling options that differ from their defaults; all options if the model is unknown."""
    from arvid.training.sampling_options import build_sampling  # slow to import

    try:
        paradigm = registry.get("paradigms", factors["paradigm"])
        return build_sampling(paradigm, factors["token_type"], options).changed()
    except (UserError, KeyError):
        return options


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None for samples of external systems. Raises UserError for a damaged file."""
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
