"""From run folders to scored rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser

from arvid.contracts import UserError, VideoDataset
from arvid.evaluation.harness import (
    FirstFrameRow,
    ModelRow,
    RealRow,
    ReconstructionRow,
    Row,
    evaluate,
)
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.records import ResultRecord
from arvid.files import sha256_file
from arvid.training._explain import explain
from arvid.training.generator_module import (
    LAST_CHECKPOINT,
    GeneratorModule,
    checkpoint_path,
    differing,
    load_generator,
)


def evaluate_run(run: Path, protocol: Protocol) -> ResultRecord:
    """Score a trained run on its own validation set; the record lies in its folder."""
    path = checkpoint_path(run)
    model = load_generator(path)
    folder = path.parents[1] if path.parent.name == LAST_CHECKPOINT.parent.name else path.parent
    row = ModelRow(model, folder.name, run=folder, checkpoint_sha256=sha256_file(path))
    return evaluate(row, protocol, validation_set(model), folder, description=model.description)


def evaluate_references(runs: list[Path], protocol: Protocol, out: Path) -> list[ResultRecord]:
    """Score the reference rows of runs that share a setting, each into a folder of its own below `out`.

    They are: other real clips (for metrics between sets), the reconstruction by each tokenizer in use, the first
    frame repeated, and the first run's model untrained.
    """
    models = {run: load_generator(run) for run in runs}
    first = next(iter(models.values()))
    for run, model in models.items():
        found = differing(model.description, first.description, ("setting",))
        if found:
            raise UserError(f"{run} has another setting than {runs[0]}: {'; '.join(found)}.")
    dataset = validation_set(first)
    rows: list[Row] = [RealRow(dataset, protocol)] if protocol.task == "generation" else []
    by_type = {model.tokenizer.spec.type: model.tokenizer for model in models.values()}
    rows += [ReconstructionRow(tokenizer) for _, tokenizer in sorted(by_type.items())]
    torch.manual_seed(protocol.seed)
    fresh = load_generator(runs[0], trained=False)
    rows += [FirstFrameRow(), ModelRow(fresh, f"untrained ({runs[0].name})")]
    return [
        evaluate(
            row, protocol, dataset, out / _folder_name(row.name), description=first.description
        )
        for row in rows
    ]


def validation_set(model: GeneratorModule) -> VideoDataset:
    """The validation set that a run was trained with. Raises UserError if its files are not there any more."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(VideoDataset, "data")
    config: dict[str, Any] = model.description["validation"]
    try:
        parsed = parser.parse_object({"data": config})
        dataset = parser.instantiate_classes(parsed)["data"]
    except (ArgumentError, ValueError) as error:
        reason = explain(str(error))
        raise UserError(f"The run's validation set cannot be built: {reason}") from error
    assert isinstance(dataset, VideoDataset)
    return dataset


def _folder_name(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name).strip("-").replace("--", "-")
