"""Scores a dimension video by video. An interrupted run continues where it stopped.

An unreadable video is an error (VBench skips it in temporal flickering). The first five videos of each prompt that
count are scored; only the static filter excludes videos.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import arvid
from arvid.contracts import UserError
from arvid.data.video import read_video
from arvid.metrics.inference import full_precision
from arvid.processes import best_device, gather, rank_and_count, wait_for_all
from arvid.progress import Bar
from arvid.sealed import Damaged, verify, write_sealed_json
from arvid.suites.vbench.dimensions import Dimension, VideoScore
from arvid.suites.vbench.networks import weights_hash
from arvid.suites.vbench.results import DimensionResult, finished, save, videos_sha256
from arvid.suites.vbench.suite import SAMPLES, Take

logger = logging.getLogger(__name__)

UNITS = {"imaging_quality": 100.0}
"""Divisor that turns a dimension's video values into fractions; 1 for other dimensions."""
_SAVE_EVERY = 20
"""Number of new scores between two writes of the partial file."""


def score_dimension(
    name: str,
    dimension: Dimension,
    takes: Sequence[Take],
    videos: Path,
    folder: Path,
    *,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> DimensionResult:
    """Score a dimension and write its result. Processes split the prompts; all return the same result.

    Args:
        name: of the dimension.
        dimension: see `arvid.suites.vbench.dimensions.build`.
        takes: the existing videos; see `suite.present`.
        videos: folder of the videos.
        folder: folder of the results. A result of the same videos, networks and options is reused.
        options: further options that the score depends on, stored with it.
        progress: show a progress bar over the videos.

    Raises UserError with the name of a video that cannot be read or scored, and if no video counts.
    """
    networks = {key: weights_hash(net) for key, net in dimension.networks.items()}
    made_with = {
        "arvid": arvid.__version__,
        "networks": networks,
        "options": dict(options or {}),
        "videos_sha256": videos_sha256(videos / take.file for take in takes),
    }
    kept = finished(folder, name, made_with)
    wait_for_all()  # all processes must check before one of them writes the result
    if kept:
        return kept
    rank, num_processes = rank_and_count()
    mine = _share(takes, rank, num_processes)
    partial = folder / f"{name}_partial{f'-{rank}' if rank else ''}.json"
    found = gather(_score_videos(name, dimension, mine, videos, (partial, made_with), progress))
    if found is not None:
        made = {file: score for part in found for file, score in part.items()}
        scores = {take.file: made[take.file] for take in takes if take.file in made}
        save(_sum_up(name, takes, videos, scores, made_with), folder)
        for path in _partials(folder, name):
            path.unlink()
    wait_for_all()
    summed = finished(folder, name, made_with)
    assert summed is not None
    return summed


def _share(takes: Sequence[Take], rank: int, num_processes: int) -> list[Take]:
    """A process's videos: all of every n-th prompt. Prompts are not split: earlier videos decide which ones count."""
    texts = list(dict.fromkeys(take.prompt.text for take in takes))
    mine = set(texts[rank::num_processes])
    return [take for take in takes if take.prompt.text in mine]


def _sum_up(
    name: str,
    takes: Sequence[Take],
    videos: Path,
    scores: Mapping[str, VideoScore],
    made_with: Mapping[str, Any],
) -> DimensionResult:
    counting = {file: score for file, score in scores.items() if score.weight}
    if not counting:
        raise UserError(
            f"{name}: none of the {len(scores)} videos is static, so there is no score. Leave this dimension out."
        )
    weight = sum(score.weight for score in counting.values())
    total = sum(score.value * score.weight for score in counting.values())
    return DimensionResult(
        dimension=name,
        score=total / weight / UNITS.get(name, 1.0),
        videos=tuple(
            {"video_path": str(videos / file), "video_results": score.value, "weight": score.weight}
            for file, score in counting.items()
        ),
        made_with={**made_with, "short_prompts": _short_prompts(takes, counting)},
    )


def _score_videos(
    name: str,
    dimension: Dimension,
    takes: Sequence[Take],
    videos: Path,
    ledger: tuple[Path, Mapping[str, Any]],
    progress: bool,
) -> dict[str, VideoScore]:
    """Scores by file. Reads the scores of an interrupted run, and writes partial results."""
    partial, made_with = ledger
    scores = _interrupted(_partials(partial.parent, name), made_with)
    counted: Counter[str] = Counter()
    chosen: dict[str, VideoScore] = {}
    for take in Bar(takes, name, unit="video", hidden=not progress):
        text = take.prompt.text
        if counted[text] == SAMPLES:
            continue
        if take.file not in scores:
            scores[take.file] = _score_video(dimension, take, videos / take.file)
            if len(scores) % _SAVE_EVERY == 0:
                _store(*ledger, scores)
        chosen[take.file] = scores[take.file]
        counted[text] += bool(scores[take.file].weight)  # weight 0: rejected by the static filter
    return chosen


def _score_video(dimension: Dimension, take: Take, path: Path) -> VideoScore:
    video = read_video(path)
    try:
        with full_precision(best_device().type):
            score = dimension(video, take.prompt)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not math.isfinite(score.value):
        raise UserError(f"{path}: the score is {score.value}; are the weights the right ones?")
    return score


def _short_prompts(takes: Sequence[Take], counting: Mapping[str, VideoScore]) -> int:
    """Number of prompts with fewer than five videos that count."""
    counts = Counter(take.prompt.text for take in takes if take.file in counting)
    return sum(counts[text] < SAMPLES for text in {take.prompt.text for take in takes})


def _partials(folder: Path, name: str) -> list[Path]:
    """Partial results of all processes."""
    return sorted(folder.glob(f"{name}_partial*.json"))


def _interrupted(paths: Sequence[Path], made_with: Mapping[str, Any]) -> dict[str, VideoScore]:
    """Partial scores of an interrupted run with the same `made_with`. Damaged files are ignored, with a warning."""
    found: dict[str, VideoScore] = {}
    for path in paths:
        content = path.read_bytes()
        try:
            verify(content)
        except Damaged as error:
            logger.warning("%s is damaged (%s): its videos are scored again.", path, error)
            continue
        stored = json.loads(content)
        if stored["made_with"] == made_with:
            found |= {file: VideoScore(*values) for file, values in stored["videos"].items()}
    return found


def _store(path: Path, made_with: Mapping[str, Any], scores: Mapping[str, VideoScore]) -> None:
    videos = {file: [score.value, score.weight] for file, score in scores.items()}
    write_sealed_json(path, {"made_with": made_with, "videos": videos})
