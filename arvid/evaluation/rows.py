"""Scores run folders, folders of videos and pipelines as rows of a comparison."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from arvid import registry
from arvid.contracts import UserError, VideoDataset
from arvid.data.token_shards import TokenShards
from arvid.evaluation.external import NO_SETTING, VideosRow
from arvid.evaluation.harness import evaluate
from arvid.evaluation.pipelines import PipelineRow, check_task, load_pipeline
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.real_statistics import RealStatistics
from arvid.evaluation.records import ResultRecord
from arvid.evaluation.row_kinds import FirstFrameRow, ModelRow, RealRow, ReconstructionRow, Row
from arvid.processes import best_device
from arvid.training.checkpoint_io import checkpoint_sha256
from arvid.training.export import load_tokenizer
from arvid.training.generator_module import (
    GeneratorModule,
    checkpoint_path,
    load_generator,
)
from arvid.training.instantiate import build
from arvid.training.keys import LAST_CHECKPOINT
from arvid.training.resuming import differences
from arvid.trust import trusting

OF_A_TRAINING = ("seed", "data.seed", "trainer.max_steps")
"""Keys of a setting that change trained rows only."""

logger = logging.getLogger(__name__)


def evaluate_run(
    run: Path,
    protocol: Protocol,
    real: VideoDataset | None = None,
    *,
    dtype: str = "float32",
    trust: Iterable[str] = (),
) -> ResultRecord:
    """Score a trained run; under a reconstruction protocol its tokenizer. The run may be a tokenizer's training.

    Writes the record into the run's folder. `real` are the protocol's real clips (see `arvid.evaluation.real_clips`);
    by default the run's own validation set. `dtype` is the generator's dtype. `trust` names packages whose classes the
    checkpoint may use (see `arvid.trust`). Raises UserError if the protocol has a `clip` and `real` is None.
    """
    with trusting(trust):
        return _evaluate_run(run, protocol, real, dtype)


def _evaluate_run(
    run: Path, protocol: Protocol, real: VideoDataset | None, dtype: str
) -> ResultRecord:
    path = checkpoint_path(run)
    folder = records_folder(path)
    if protocol.task == "reconstruction":
        tokenizer = load_tokenizer(path).to(best_device())
        row: Row = ReconstructionRow(tokenizer, f"reconstruction ({folder.name})")
        return evaluate(row, protocol, _given(real, protocol), folder, description=NO_SETTING)
    model = load_generator(path, dtype=dtype)
    row = ModelRow(model, folder.name, run=folder, checkpoint_sha256=checkpoint_sha256(path))
    dataset = _given(real, protocol) if protocol.clip else validation_set(model)
    training = training_set(model, protocol)
    return evaluate(
        row, protocol, dataset, folder, description=model.description, training=training
    )


def records_folder(path: Path) -> Path:
    """The folder of the records of a checkpoint: its run folder, or else the file's folder."""
    in_run = path.parent.name == LAST_CHECKPOINT.parent.name
    return path.parents[1] if in_run else path.parent


def evaluate_references(
    runs: Sequence[Path], protocol: Protocol, out: Path, real: VideoDataset | None = None
) -> list[ResultRecord]:
    """Score the reference rows of runs that share a setting, each in its own folder below `out`.

    The rows: other real clips (if there are enough), the reconstruction by each tokenizer in use, the first frame (or
    the last given one) repeated, and the first run's model untrained. Without runs: only rows that need no model.
    """
    require_videos(real)
    models = {run: load_generator(run) for run in runs}
    _require_one_setting(models)
    first = next(iter(models.values()), None)
    dataset = _given(real, protocol) if protocol.clip or not first else validation_set(first)
    description = first.description if first else NO_SETTING
    training = training_set(first, protocol) if first else None
    rows = [*_real_row(dataset, protocol), *_model_rows(models, protocol)]
    return [
        evaluate(
            row,
            protocol,
            dataset,
            out / _folder_name(row.name),
            description=description,
            training=training,
        )
        for row in rows
    ]


def require_videos(real: VideoDataset | None) -> None:
    """Raise UserError for statistics, which reference rows cannot use."""
    if isinstance(real, RealStatistics):
        raise UserError("Reference rows need real videos: give them with --real, not statistics.")


def evaluate_videos(
    videos: Path, protocol: Protocol, real: VideoDataset, *, out: Path, name: str
) -> ResultRecord:
    """Score a folder of videos from an external system. Writes the record into `out`."""
    row = VideosRow(videos, name, protocol=protocol, dataset=real)
    return evaluate(row, protocol, real, out, description=NO_SETTING)


def evaluate_pipeline(
    source: str,
    protocol: Protocol,
    real: VideoDataset,
    *,
    out: Path,
    name: str,
    dtype: str = "float32",
    arguments: Mapping[str, Any] | None = None,
) -> ResultRecord:
    """Score a diffusers video pipeline (hub name or folder). Writes the record into `out`.

    `arguments` are further arguments of its call, besides prompt, image, generator and number of frames. Raises
    UserError for a task that it cannot do.
    """
    check_task(protocol)
    row = PipelineRow(
        load_pipeline(source, dtype),
        name,
        source=source,
        dtype=dtype,
        arguments=arguments or {},
        protocol=protocol,
    )
    return evaluate(row, protocol, real, out, description=NO_SETTING)


def validation_set(model: GeneratorModule) -> VideoDataset:
    """The validation set of a run's training.

    Raises UserError if its files no longer exist, and for an imported model.
    """
    config = model.description.get("validation")
    if config is None:
        raise UserError(
            "This model was not trained by arvid, so it has no validation set of real clips: "
            "give some with `arvid evaluate --real`."
        )
    dataset: VideoDataset = build("datasets", config, what="The run's validation set")
    return dataset


def training_set(model: GeneratorModule, protocol: Protocol) -> VideoDataset | None:
    """The training set of a run, if a metric of the protocol compares with it.

    None also for a protocol with a `clip` (it cuts clips otherwise than training did), for a run of an older arvid or
    of another program, and for a training on token shards, which hold no frames. Raises UserError if its files no
    longer exist.
    """
    config = model.description.get("training")
    names = (*protocol.metrics, *protocol.optional_metrics)
    is_used = any(registry.get("metrics", name).uses_training for name in names)
    if config is None or protocol.clip is not None or not is_used:
        return None
    dataset: VideoDataset = build("datasets", config, what="The run's training set")
    return None if isinstance(dataset, TokenShards) else dataset


def _given(real: VideoDataset | None, protocol: Protocol) -> VideoDataset:
    if real is None:
        raise UserError(
            f"Protocol {protocol.name} needs real clips: --real with {protocol.real_split}."
        )
    return real


def _require_one_setting(models: Mapping[Path, GeneratorModule]) -> None:
    """Reference rows depend on data and tokenizers, but not on a training's seed and length."""
    for (first, a), (run, b) in pairwise(models.items()):
        found = differences(b.description, a.description, "setting")
        lines = [
            f"{key}: {there} there, {here} here"
            for key, (there, here) in found.items()
            if key not in OF_A_TRAINING
        ]
        if lines:
            raise UserError(f"{run} has another setting than {first}: {'; '.join(lines)}.")


def _real_row(dataset: VideoDataset, protocol: Protocol) -> list[Row]:
    if protocol.task == "prediction":
        return []
    try:
        return [RealRow(dataset, protocol)]
    except UserError as error:
        logger.warning("No row of real clips: %s", error)
        return []


def _model_rows(models: Mapping[Path, GeneratorModule], protocol: Protocol) -> list[Row]:
    by_type = {model.tokenizer.spec.type: model.tokenizer for model in models.values()}
    rows: list[Row] = [ReconstructionRow(by_type[kind]) for kind in sorted(by_type)]
    rows.append(FirstFrameRow())
    if models and protocol.task != "reconstruction":
        run = next(iter(models))
        torch.manual_seed(protocol.seed)
        rows.append(ModelRow(load_generator(run, trained=False), f"untrained ({run.name})"))
    return rows


def _folder_name(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).strip("-").replace("--", "-")
