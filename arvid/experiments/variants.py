"""Variants of a run: trained under one setting, scored under the same protocols one at a time, in rows that compare.

What the demo and the benchmarks of tables and figures have in common. All of it goes on where it was interrupted when
it is called again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from arvid import registry
from arvid.contracts import Clip, Request, UserError, VideoDataset
from arvid.data.collate import normalise
from arvid.evaluation.harness import evaluate
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.records import ResultRecord
from arvid.evaluation.row_kinds import ModelRow
from arvid.evaluation.rows import evaluate_references, validation_set
from arvid.experiments.side_by_side import Job, run_side_by_side
from arvid.files import sha256_file
from arvid.sampling.sample import Conditions, clip_grid
from arvid.training.generator_module import GeneratorModule, checkpoint_path, load_generator
from arvid.training.keys import LAST_CHECKPOINT

MIN_TIMES, MIN_SECONDS = 3, 2.0
"""A clip is timed so often, and for so long: the fastest time is what other work on the machine disturbed least."""
REFERENCES = "references"
"""Folder of the reference rows, beside those of the variants."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a comparison: a run to be trained, or a model that there is."""

    name: str
    """Of the row and of its folder."""
    configs: tuple[str, ...] = ()
    """Configurations of `arvid fit`, by name or path; later ones win."""
    options: tuple[str, ...] = ()
    """Its options besides those that all variants share."""
    checkpoint: Path | None = None
    """Run folder or file of a model that is scored as it is: another variant's, or a published one."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Sampling options that replace the model's own."""


def fit_job(name: str, configs: Sequence[str], run: Path, options: Sequence[str] = ()) -> Job:
    """`arvid fit` as a job."""
    named = [argument for config in configs for argument in ("--config", config)]
    return Job(name, ["fit", *named, "--run", str(run), *options])


def train(variants: Sequence[Variant], out: Path, options: Sequence[str] = ()) -> None:
    """Train the variants that have no checkpoint, each in OUT/NAME: on a CPU side by side.

    `options` are those of `arvid fit` that all share; they win over a variant's own. Raises UserError with the end of
    the log of one that fails.
    """
    jobs = [
        fit_job(v.name, v.configs, out / v.name, [*v.options, *options])
        for v in variants
        if v.checkpoint is None
    ]
    run_side_by_side(jobs, out)


def model_path(variant: Variant, out: Path) -> Path:
    """The file of a variant's model. Raises UserError if there is none."""
    return checkpoint_path(variant.checkpoint or out / variant.name)


def load_variant(variant: Variant, out: Path) -> GeneratorModule:
    """A variant's model, which samples as the variant says."""
    model = load_generator(model_path(variant, out))
    model.sampling = model.sampling.replace(**variant.sampling)
    options = {f"sampling.{key}": str(value) for key, value in variant.sampling.items()}
    model.description = {
        **model.description,
        "options": {**model.description["options"], **options},
    }
    return model


def score(
    variants: Sequence[Variant],
    protocols: Sequence[Protocol],
    out: Path,
    *,
    real: Mapping[str, VideoDataset] | None = None,
    one_setting: bool = True,
) -> list[ResultRecord]:
    """Score all variants and the reference rows under each protocol; nothing else runs meanwhile, so speeds compare.

    Args:
        variants: trained ones, or ones with a checkpoint.
        protocols: under each of which all are scored.
        out: records lie in OUT/NAME and below OUT/references.
        real: real clips by the protocol's name, for protocols that cut their clips themselves (`real_clips`).
        one_setting: whether all were trained under one setting, which the reference rows then share. Else they are
            those of the first variant.

    Raises UserError for variants of different settings where they should have one.
    """
    records = []
    for protocol in protocols:
        print(f"\nScoring under {protocol.name}: {protocol.summary}", flush=True)
        dataset = (real or {}).get(protocol.name)
        own = dict.fromkeys(model_path(variant, out) for variant in variants)
        models = list(own) if one_setting else list(own)[:1]
        runs = [run_folder(path) for path in models]
        records += evaluate_references(runs, protocol, out / REFERENCES, dataset)
        records += [_score_variant(variant, protocol, out, dataset) for variant in variants]
    return records


def _score_variant(
    variant: Variant, protocol: Protocol, out: Path, real: VideoDataset | None
) -> ResultRecord:
    path = model_path(variant, out)
    model = load_variant(variant, out)
    row = ModelRow(model, variant.name, run=run_folder(path), checkpoint_sha256=sha256_file(path))
    dataset = scored_clips(model, protocol, real)
    return evaluate(row, protocol, dataset, out / variant.name, description=model.description)


def scored_clips(
    model: GeneratorModule, protocol: Protocol, real: VideoDataset | None = None
) -> VideoDataset:
    """The real clips of a protocol: the given ones, or the validation set that a model was trained with.

    Raises UserError if the protocol cuts its clips itself and none are given.
    """
    if not protocol.clip:
        return validation_set(model)
    if real is None:
        raise UserError(f"Protocol {protocol.name} needs real clips: {protocol.real_split}.")
    return real


def run_folder(path: Path) -> Path:
    """The run that a checkpoint is of; the file itself where it lies in none."""
    in_run = path.parent.name == LAST_CHECKPOINT.parent.name
    return path.parents[1] if in_run else path


def folders(records: Sequence[ResultRecord]) -> list[Path]:
    """The run folders in which records lie, in their order: what `write_report` takes."""
    return list(dict.fromkeys(r.folder.parent for r in records if r.folder is not None))


def usable(protocol: Protocol) -> tuple[Protocol, list[str]]:
    """The protocol with those of its metrics whose weights are there, and what the others lack.

    Raises UserError if nothing is left.
    """
    kept, notes = [], []
    for name in protocol.metrics:
        try:
            registry.get("metrics", name).for_protocol(protocol)
            kept.append(name)
        except UserError as error:
            notes.append(f"No {name}: {str(error).split(' Get it from ')[0]}")
    if not kept:
        raise UserError(f"No metric of the protocol {protocol.name} has its weights: {notes[0]}")
    return dataclasses.replace(protocol, metrics=tuple(kept)), notes


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What it takes to generate one clip alone."""

    frames: int
    """Generated, the given ones not counted."""
    steps: int
    """Evaluations of the main network."""
    seconds: float
    """Until the tokens are there."""
    decoding_seconds: float

    @property
    def frames_per_second(self) -> float:
        """From condition to frames."""
        return self.frames / (self.seconds + self.decoding_seconds)


def measure_speed(
    variant: Variant,
    protocol: Protocol,
    out: Path,
    *,
    real: Mapping[str, VideoDataset] | None = None,
) -> Speed:
    """The fastest of the times that a clip takes, alone, with what a protocol gives; a first one warms up.

    `real` is as for `score`.
    """
    model = load_variant(variant, out)
    clip = scored_clips(model, protocol, (real or {}).get(protocol.name))[0]
    return _time_clip(model, clip, protocol.condition_frames)


@torch.no_grad()
def _time_clip(model: GeneratorModule, clip: Clip, given: int) -> Speed:
    grid, options = clip_grid(model), model.sampling
    prefix = None
    if given:
        prefix = model.tokenizer.encode(normalise(clip.video[:given])[None].to(model.device))
    found: list[tuple[float, float]] = []
    while len(found) <= MIN_TIMES or sum(map(sum, found)) < MIN_SECONDS:
        times = [now(model.device)]
        request = Request(
            Conditions.of_clips([clip]).encode(model),
            grid,
            prefix=prefix,
            options=options,
            generator=torch.Generator(model.device).manual_seed(len(found)),
        )
        tokens = model.paradigm.generate(request)
        times.append(now(model.device))
        model.tokenizer.decode(tokens)
        times.append(now(model.device))
        found.append((times[1] - times[0], times[2] - times[1]))
    seconds, decoding = (min(column) for column in zip(*found[1:], strict=True))
    num_given = 0 if prefix is None else prefix.shape[1]
    evaluations = model.paradigm.num_evaluations(grid, prefix_frames=num_given, options=options)
    return Speed(
        frames=model.tokenizer.spec.num_frames(grid) - given,
        steps=next(iter(evaluations.values())),
        seconds=seconds,
        decoding_seconds=decoding,
    )


def now(device: torch.device) -> float:
    """The time at which the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def data_options(data: Path, val: Path | None = None) -> list[str]:
    """Options of `arvid fit` that put one's own clips into a setting: folders of class folders, or manifests.

    Without `val` the data are divided into training and validation. Raises UserError if there is no such thing.
    """
    found = []
    for part, path in (("train", data), ("val", val or data)):
        if not os.path.exists(path):
            raise UserError(f"{path}: there is no such folder or manifest.")
        kind, place = (
            ("folder.VideoFolder", "root") if path.is_dir() else ("manifest.VideoManifest", "path")
        )
        found += [
            f"--data.{part}.class_path=arvid.data.{kind}",
            f"--data.{part}.init_args.{place}={path}",
            f"--data.{part}.init_args.split={'all' if val else part}",
        ]
    return found


def tokenizer_option(*, continuous: str | None = None, discrete: str | None = None) -> str:
    """The option of `arvid fit` that puts tokenizers in the place of a setting's."""
    # As a whole: on its own, a null for one of them would be read as a name.
    value = json.dumps({"continuous": continuous, "discrete": discrete})
    return f"--model.init_args.tokenizers={value}"


def named_paths(given: Sequence[str]) -> dict[str, Path]:
    """NAME=PATH arguments as paths by name. Raises UserError for any that is something else, or a name given twice."""
    found: dict[str, Path] = {}
    for pair in given:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise UserError(f"Give a name and a path as NAME=PATH, not {pair!r}.")
        if name in found:
            raise UserError(f"The name {name} is given twice.")
        found[name] = Path(path)
    return found
