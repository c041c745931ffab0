"""The model card of a published run, made from its description and its records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

import arvid
from arvid.api.repository import endpoint
from arvid.evaluation.records import EVALUATION_FOLDER, ResultRecord
from arvid.report import tables
from arvid.report.comparison import Comparison

MAX_CLIPS = 8
"""Number of clips on the card; the repository has all."""


def card(
    name: str,
    description: Mapping[str, Any],
    records: Sequence[ResultRecord],
    digest: str,
    *,
    command: str | None,
    licence: str | None,
) -> str:
    """The card as Markdown with a YAML header.

    Args:
        name: user/name.
        description: description in the checkpoint: factors, options, setting and the setting's hash.
        records: result records of the run.
        digest: SHA-256 of the weights.
        command: the command that repeats the training, if known.
        licence: the weights' licence, as the hub names it; None: not stated.
    """
    factors = description["factors"]
    parts = [
        _header(factors, licence),
        f"# {name.partition('/')[2]}",
        f"A video generator of arvid {arvid.__version__}: "
        + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in factors.items())
        + ".",
        "## Use",
        "```python\nimport arvid\n\n"
        f'model = arvid.load("hf://{name}")\nclips = model.sample({_prompt(description)})\n```',
        "Loading runs no code of this repository and verifies the checksum of the weights.",
        "## Results",
        _results(records),
        *_clips(name, records),
        "## Training",
        *_training(command),
        f"Setting `{description['setting_hash']}`. Models with the same setting can be compared.",
        _table(description["setting"]),
        "Options of this model:",
        _table(description["options"]),
        "## Files",
        f"`model.safetensors` has the SHA-256 `{digest}`. `arvid.json` lists the SHA-256 of each file.",
        "## Licence",
        f"{licence}." if licence else "No licence of the weights is stated.",
    ]
    return "\n\n".join(parts) + "\n"


def _header(factors: Mapping[str, str], licence: str | None) -> str:
    values: dict[str, Any] = {"license": licence} if licence else {}
    tags = ["arvid", "video-generation", "autoregressive", *factors.values()]
    values |= {"library_name": "arvid", "tags": list(dict.fromkeys(tags))}
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _prompt(description: Mapping[str, Any]) -> str:
    return '"..."' if description["config"].get("text") else ""


def _results(records: Sequence[ResultRecord]) -> str:
    if not records or records[0].folder is None:
        return "Not scored yet."
    comparison = Comparison.from_runs([records[0].folder.parent], title="Results")
    _, _, below_title = tables.markdown(comparison).partition("\n")
    return below_title.strip().replace("\n## ", "\n### ")


def _clips(name: str, records: Sequence[ResultRecord]) -> list[str]:
    found = [clip for record in records for clip in record.clips][:MAX_CLIPS]
    if not found:
        return []
    place = f"{endpoint()}/{name}/resolve/main/{EVALUATION_FOLDER}"
    videos = (
        f'<video src="{place}/{clip.file}" width="128" autoplay loop muted playsinline></video>'
        for clip in found
    )
    return ["## Clips", "\n".join(videos)]


def _training(command: str | None) -> list[str]:
    return [f"    {command}"] if command else []


def _table(values: Mapping[str, Any]) -> str:
    lines = [f"| `{key}` | `{_plain(value)}` |" for key, value in values.items()]
    return "\n".join(["| key | value |", "| :-- | :-- |", *lines])


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ")
