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
from arvid.metrics.inference import full_precision
from arvid.processes import best_device, gather, rank_and_count, wait_for_all
from arvid.sealed import Damaged, verify, write_sealed_json
from arvid.suites.vbench.dimensions import Dimension, VideoScore
from arvid.suites.vbench.networks import weights_hash
from arvid.suites.vbench.results import DimensionResult, finished, save, videos_sha256
from arvid.suites.vbench.suite import SAMPLES, Take

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
    """Score a dimension and write its result. Processes share the prompts, and have the same result.

    Args:
        name: of the dimension.
        dimension: see `arvid.suites.vbench.dimensions.build`.
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
    wait_for_all()  # else one might find what another has just finished
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
    """A process's takes: all of every n-th prompt, since which ones of a prompt count depends on those before."""
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
        raise UserError(f"{name}: none of the {len(scores)} videos is static, so none counts.")
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
    """Scores by file, those of an interrupted run included; stored in between."""
    partial, made_with = ledger
    scores = _interrupted(_partials(partial.parent, name), made_with)
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


def _partials(folder: Path, name: str) -> list[Path]:
    """What processes have stored in between."""
    return sorted(folder.glob(f"{name}_partial*.json"))


def _interrupted(paths: Sequence[Path], made_with: Mapping[str, Any]) -> dict[str, VideoScore]:
    """The scores that an interrupted run stored, of the same videos and networks; none where they are damaged."""
    found: dict[str, VideoScore] = {}
    for path in paths:
        content = path.read_bytes()
        try:
            verify(content)
        except Damaged as error:
            logger.warning("%s is damaged (%s): its videos are scored anew.", path, error)
            continue
        stored = json.loads(content)
        if stored["made_with"] == made_with:
            found |= {file: VideoScore(*values) for file, values in stored["videos"].items()}
    return found


def _store(path: Path, made_with: Mapping[str, Any], scores: Mapping[str, VideoScore]) -> None:
    videos = {file: [score.value, score.weight] for file, score in scores.items()}
    write_sealed_json(path, {"made_with": made_with, "videos": videos})
