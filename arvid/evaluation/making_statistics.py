"""Measure a real set under a protocol and write its statistics file: `arvid stats make`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data.loading import load_batches
from arvid.evaluation import feature_stats
from arvid.evaluation.code_identity import code_identity
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.real_clips import real_clips
from arvid.evaluation.real_measurements import RealMeasurements
from arvid.evaluation.real_statistics import (
    key_of,
    require_generation,
    require_without_conditions,
    save_statistics,
)
from arvid.evaluation.scores import Score, optional_scores, scores_for
from arvid.progress import Bar


def statistics_of(
    where: Path, protocol: Protocol, folder: Path, *, split_list: Path | None = None
) -> Path:
    """Write the statistics file of real videos, or of a published file (`.pkl`). Returns its path.

    Arguments and errors are those of `real_clips`, `make_statistics` and `convert_statistics`.
    """
    if where.suffix != feature_stats.SUFFIX or not where.is_file() or protocol.clip is None:
        return make_statistics(protocol, real_clips(protocol, where, split_list), folder)
    if split_list is not None:
        raise UserError(f"{where} has no videos to choose from: leave --real-list out.")
    require_generation(protocol)
    return feature_stats.convert_statistics(protocol, where, folder, scores_between_sets(protocol))


def make_statistics(
    protocol: Protocol, dataset: VideoDataset, folder: Path, *, progress: bool = True
) -> Path:
    """Measure the real clips of a protocol and write a statistics file. Returns its path.

    The file's name ends with a hash of its content. Measurements are cached like those of an evaluation, so
    an interrupted run continues.

    Args:
        protocol: a protocol of the task `generation` with a metric between sets.
        dataset: the real clips (see `arvid.evaluation.real_clips`).
        folder: folder of the file.
        progress: show a progress bar.

    Raises UserError for another protocol, too few clips, missing weights, and clips with conditions besides caption
    and class.
    """
    require_generation(protocol)
    scores = scores_between_sets(protocol, dataset)
    kept = RealMeasurements(
        dataset, protocol.scored, code_identity({type(dataset), *map(type, scores.values())})
    )
    compared, others = _plan(protocol, dataset)
    clips: dict[int, Clip] = {}
    measured: dict[int, dict[str, Tensor]] = {}
    loaded = load_batches(dataset, [*compared, *others])
    num = len(compared) + len(others)
    bar = Bar(loaded, "statistics", num, unit="batch", hidden=not progress)
    shape: tuple[int, ...] = ()
    for i, (indices, found) in enumerate(zip([*compared, *others], bar, strict=True)):
        require_without_conditions(found)
        if i < len(compared):
            measured.update(_measure(scores, kept, indices, found, protocol))
        shape = found[0].video.shape
        frameless = np.empty((0, *shape[1:]), np.uint8)  # all frames would not fit into memory
        clips |= {
            index: dataclasses.replace(clip, video=frameless)
            for index, clip in zip(indices, found, strict=True)
        }
    return save_statistics(folder, protocol, dataset, clips, measured, scores, shape)


def scores_between_sets(
    protocol: Protocol, dataset: VideoDataset | None = None
) -> dict[str, Score]:
    """One metric for each feature network of the metrics between sets, by the network's key.

    Without real clips the protocol's optional metrics are left out. Raises UserError if there is none.
    """
    optional = {} if dataset is None else optional_scores(protocol, dataset, None)[0]
    usable = {**scores_for(protocol), **optional}
    found = {key: score for score in usable.values() if (key := key_of(score)) is not None}
    if not found:
        raise UserError(
            f"Protocol {protocol.name} has no metric between sets of clips, so statistics would be empty: "
            "choose one with --metric, such as fvd."
        )
    return found


def _plan(protocol: Protocol, dataset: VideoDataset) -> tuple[list[list[int]], list[list[int]]]:
    """Batches of the real clips for the comparison, and of those that only give a caption or class."""
    chosen = [protocol.choose(dataset, fold)[0] for fold in range(protocol.folds)]
    real = protocol.real(dataset)
    if real is None:
        return protocol.in_batches(chosen), []
    others = sorted({index for fold in chosen for index in fold} - set(real))
    return protocol.in_batches([real]), protocol.in_batches([others])


def _measure(
    scores: dict[str, Score],
    kept: RealMeasurements,
    indices: Sequence[int],
    clips: Sequence[Clip],
    protocol: Protocol,
) -> dict[int, dict[str, Tensor]]:
    """Measurements `<network's key>.<name>` of each clip, by index."""
    videos = torch.from_numpy(np.stack([clip.video for clip in clips])[:, protocol.scored].copy())
    tensors = {
        f"{key}.{name}": values
        for key, score in scores.items()
        for name, values in kept.measure(score, indices, videos).items()
    }
    rows = ({key: values[i] for key, values in tensors.items()} for i in range(len(clips)))
    return dict(zip(indices, rows, strict=True))
