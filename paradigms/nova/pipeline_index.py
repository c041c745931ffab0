"""Remaining files of an exported pipeline: links to the frozen text encoder, and `model_index.json`.

The index has the class names of the released folders, such as https://huggingface.co/BAAI/nova-d48w1024-osp480. Names
with underscores (`__transformer__`) are modules of the released code, which is not exported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers

from arvid import hub
from arvid.files import write_json

INDEX = "model_index.json"
SCHEDULER_CONFIG = "scheduler_config.json"
PARTS = ("transformer", "scheduler", "vae", "text_encoder", "tokenizer")


def link_text_encoder(out: Path, text: Mapping[str, Any] | None) -> list[str]:
    """Link `text_encoder` and `tokenizer` of a pipeline to the folders that a model reads; returns the new links.

    Existing files and links stay. Nothing is linked if the encoder is not a local folder.

    Args:
        out: folder of the pipeline.
        text: the model's text encoder as plain data (class_path, init_args). None: the model has none.
    """
    arguments = (text or {}).get("init_args") or {}
    encoder = arguments.get("name")
    if encoder is None:
        return []
    sources = {
        "text_encoder": Path(encoder),
        "tokenizer": Path(arguments.get("tokenizer") or encoder),
    }
    if not all(source.is_dir() for source in sources.values()):
        return []
    linked = []
    for name, source in sources.items():
        link = out / name
        if not link.exists() and not link.is_symlink():
            link.symlink_to(source.resolve())
            linked.append(name)
    return linked


def write_index(out: Path) -> None:
    """Write `model_index.json` for the parts that the folder has."""
    classes = {name: _class_of(out, name) for name in PARTS if (out / name).is_dir()}
    index = {"_class_name": "NOVAPipeline", "_diffusers_version": diffusers.__version__}
    write_json(out / INDEX, {**index, **{name: list(found) for name, found in classes.items()}})


def _class_of(out: Path, part: str) -> tuple[str | None, str | None]:
    """Module and class of a part, as in a released index. The class is None if the part's files do not name it."""
    folder = out / part
    if part == "transformer":
        return "__transformer__", "NOVATransformer3DModel"
    if part == "scheduler":
        return "diffusers", _read(folder / SCHEDULER_CONFIG).get("_class_name")
    if part == "vae":
        return "__vae__", _read(folder / hub.CONFIG).get("_class_name")
    if part == "tokenizer":
        return "transformers", _read(folder / "tokenizer_config.json").get("tokenizer_class")
    config = _read(folder / hub.CONFIG)
    if config.get("model_type") == "phi":  # the encoder of all released models
        return "__text_encoder__", "PhiEncoderModel"
    return "transformers", next(iter(config.get("architectures") or ()), None)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found
