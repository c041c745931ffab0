"""Scores on disk, in VBench's format: `{name}_eval_results.json` = {dimension: [score, [{video_path, ...}]]}.

arvid adds a third element with networks, options and versions. VBench's scripts read only the first. There is one file
per dimension. Some of VBench's relatives write further elements before or after the list of videos.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arvid.errors import UserError
from arvid.files import sha256_json, write_json
from arvid.suites.vbench.aggregate import VBENCH, Rules

SUFFIX = "_eval_results.json"


@dataclass(frozen=True, kw_only=True)
class DimensionResult:
    """The raw score of one dimension."""

    dimension: str
    score: float
    """Fraction, as used in the totals."""
    videos: tuple[dict[str, Any], ...]
    """One entry per video: `video_path`, `video_results` and VBench's other keys."""
    made_with: dict[str, Any] = field(default_factory=dict)
    """Networks, options and versions; empty for files that arvid did not write."""


def result_path(folder: Path, dimension: str) -> Path:
    """Path of a dimension's result."""
    return folder / f"{dimension}{SUFFIX}"


def save(result: DimensionResult, folder: Path) -> Path:
    """Write a result, atomically, and return its path."""
    path = result_path(folder, result.dimension)
    value = [result.score, list(result.videos), result.made_with]
    write_json(path, {result.dimension: value})
    return path


def finished(
    folder: Path, dimension: str, made_with: Mapping[str, Any], rules: Rules = VBENCH
) -> DimensionResult | None:
    """An existing result with the same `made_with`, or None. Raises UserError if it cannot be read."""
    path = result_path(folder, dimension)
    found = load(path, rules).get(dimension) if path.is_file() else None
    same = found and all(found.made_with.get(key) == value for key, value in made_with.items())
    return found if same else None


def videos_sha256(paths: Iterable[Path]) -> str:
    """Hash of names, sizes and modification times of files: it changes when a file is made again."""
    stats = [(path.name, path.stat()) for path in paths]
    return sha256_json([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def load(path: Path, rules: Rules = VBENCH) -> dict[str, DimensionResult]:
    """The results in a file, by dimension. Raises UserError with file and reason if it is invalid."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise UserError(f"{path}: not a result of {rules.title} ({error}).") from error
    if not isinstance(value, dict) or not value:
        raise UserError(f"{path}: not a result of {rules.title} (an object of dimensions).")
    results = (_parse(str(name), entry, path, rules) for name, entry in value.items())
    return {result.dimension: result for result in results}


def load_all(folder: Path, rules: Rules = VBENCH) -> dict[str, DimensionResult]:
    """All results in a folder, in the leaderboard's order.

    Raises UserError if there are none, if one cannot be read, or if two files have the same dimension.
    """
    found: dict[str, DimensionResult] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        for name, result in load(path, rules).items():
            if name in found:
                raise UserError(
                    f"{path}: another file of {folder} also has a score of {name}. Keep one of them."
                )
            found[name] = result
    if not found:
        raise UserError(f"{folder}: holds no results (*{SUFFIX}).")
    return {name: found[name] for name in rules.dimensions if name in found}


def _parse(name: str, entry: Any, path: Path, rules: Rules) -> DimensionResult:
    dimension = name.replace(" ", "_")
    if dimension not in rules.dimensions:
        raise UserError(f"{path}: {name!r} is not a dimension of {rules.title}.")
    lists = (
        [part for part in entry[1:] if isinstance(part, list)] if isinstance(entry, list) else []
    )
    if not lists:
        raise UserError(f"{path}: {name} is not a score with a list of videos.")
    score, videos = entry[0], lists[0]
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise UserError(f"{path}: the score of {name} is {score!r}, not a finite number.")
    return DimensionResult(
        dimension=dimension,
        score=float(score),
        videos=tuple(_objects(videos, name, path)),
        made_with=entry[2] if len(entry) > 2 and isinstance(entry[2], dict) else {},
    )


def _objects(videos: Iterable[Any], name: str, path: Path) -> Iterable[dict[str, Any]]:
    for video in videos:
        if not isinstance(video, dict) or "video_path" not in video:
            raise UserError(f"{path}: {name} has a video without video_path.")
        yield video
