"""Scores a dimension video by video, and goes on where an interrupted run stopped.

A video that cannot be read is an error (VBench skips it in temporal flickering). Of each prompt the first five videos
that count are scored; only the static filter leaves videos out.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import arvid
from arvid.contracts import UserError
from arvid.data.video import read_video
from arvid.evaluation.processes import best_device
from arvid.evaluation.vbench.dimensions import Dimension, VideoScore
from arvid.evaluation.vbench.networks import weights_hash
from arvid.evaluation.vbench.results import DimensionResult, finished, save, videos_sha256
from arvid.evaluation.vbench.suite import SAMPLES, Take
from arvid.metrics.inference import full_precision
from arvid.sealed import Damaged, verify, write_sealed_json

logger = logging.getLogger(__name__)

UNITS = {"imaging_quality": 100.0}
"""What a dimension's videos are divided by to become a fraction; 1 for the others."""
_SAVE_EVERY = 20


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
    """Score a dimension and write its result.

    Args:
        name: of the dimension.
        dimension: see `arvid.evaluation.vbench.dimensions.build`.
        takes: the videos that are there; see `suite.present`.
        videos: their folder.
        folder: of the results. One that was made of the same videos with the same networks and options is kept.
        options: what else the score depends on, kept with it.
        progress: show a bar over the videos.

    Raises UserError naming the video that cannot be read or scored, and where no video counts.
    """
    networks = {key: weights_hash(net) for key, net in dimension.networks.items()}
    made_with = {
        "arvid": arvid.__version__,
        "networks": networks,
        "options": dict(options or {}),
        "videos_sha256": videos_sha256(videos / take.file for take in takes),
    }
    kept = finished(folder, name, made_with)
    if kept:
        return kept
    partial = folder / f"{name}_partial.json"
    scores = _score_videos(name, dimension, takes, videos, (partial, made_with), progress)
    counting = {file: score for file, score in scores.items() if score.weight}
    if not counting:
        raise UserError(f"{name}: none of the {len(scores)} videos is static, so none counts.")
    weight = sum(score.weight for score in counting.values())
    total = sum(score.value * score.weight for score in counting.values())
    result = DimensionResult(
        dimension=name,
        score=total / weight / UNITS.get(name, 1.0),
        videos=tuple(
            {"video_path": str(videos / file), "video_results": score.value, "weight": score.weight}
            for file, score in counting.items()
        ),
        made_with={**made_with, "short_prompts": _short_prompts(takes, counting)},
    )
    save(result, folder)
    partial.unlink(missing_ok=True)
    return result


def _score_videos(
    name: str,
    dimension: Dimension,
    takes: Sequence[Take],
    videos: Path,
    ledger: tuple[Path, Mapping[str, Any]],
    progress: bool,
) -> dict[str, VideoScore]:
    """Scores by file, those of an interrupted run included; stored in between."""
    scores = _interrupted(*ledger)
    counted: Counter[str] = Counter()
    chosen: dict[str, VideoScore] = {}
    for take in tqdm(takes, desc=name, disable=not progress, leave=False):
        text = take.prompt.text
        if counted[text] == SAMPLES:
            continue
        if take.file not in scores:
            scores[take.file] = _score_video(dimension, take, videos / take.file)
            if len(scores) % _SAVE_EVERY == 0:
                _store(*ledger, scores)
        chosen[take.file] = scores[take.file]
        counted[text] += bool(scores[take.file].weight)
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
    """Prompts of which fewer than five videos count."""
    counts = Counter(take.prompt.text for take in takes if take.file in counting)
    return sum(counts[text] < SAMPLES for text in {take.prompt.text for take in takes})


def _interrupted(path: Path, made_with: Mapping[str, Any]) -> dict[str, VideoScore]:
    """The scores that an interrupted run stored, of the same videos and networks; none where they are damaged."""
    if not path.is_file():
        return {}
    content = path.read_bytes()
    try:
        verify(content)
    except Damaged as error:
        logger.warning("%s is damaged (%s): its videos are scored anew.", path, error)
        return {}
    stored = json.loads(content)
    if stored["made_with"] != made_with:
        return {}
    return {file: VideoScore(*values) for file, values in stored["videos"].items()}


def _store(path: Path, made_with: Mapping[str, Any], scores: Mapping[str, VideoScore]) -> None:
    videos = {file: [score.value, score.weight] for file, score in scores.items()}
    write_sealed_json(path, {"made_with": made_with, "videos": videos})
