"""Reads files of prompts and of rewritten prompts for the benchmark suites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arvid.errors import UserError


def read_text(path: Path, what: str) -> str:
    """Content of a text file. Raises UserError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {what} cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {what} is not a text file.") from error


def read_json(path: Path, what: str) -> Any:
    """Content of a JSON file. Raises UserError if it cannot be read."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {what} is not JSON ({error}).") from error


def read_rewritten(path: Path) -> dict[str, str]:
    """Rewritten prompts: original prompt -> text for the model.

    The file is a JSON list of objects with `prompt` and `dense_prompt` (NOVA's format; the first entry of a prompt
    counts), or a JSON object prompt -> text. Raises UserError for any other file.
    """
    value = read_json(path, "the file of rewritten prompts")
    try:
        if isinstance(value, dict):
            return {str(prompt): str(text) for prompt, text in value.items()}
        found: dict[str, str] = {}
        for item in value:
            found.setdefault(str(item["prompt"]), str(item["dense_prompt"]))
        return found
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: neither a JSON list of objects with prompt and dense_prompt nor an object of texts "
            "by prompt."
        ) from error
