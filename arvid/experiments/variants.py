"""Variants of a run: trained under one setting and scored under the same protocols, one after another.

Shared code of the demo and of the benchmarks of tables and figures. Everything continues after an interruption when it
is called again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from arvid import registry
from arvid.contracts import Clip, Request, UserError, VideoDataset
from arvid.data.collate import normalise
from arvid.data.folder import find_videos
from arvid.data.manifest import read_manifest
from arvid.evaluation.harness import evaluate
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.records import ResultRecord
from arvid.evaluation.row_kinds import ModelRow
from arvid.evaluation.rows import evaluate_references, training_set, validation_set
from arvid.evaluation.scores import left_out
from arvid.experiments.side_by_side import Job, run_side_by_side
from arvid.files import sha256_file
from arvid.sampling.sample import Conditions, clip_grid
from arvid.training.generator_module import GeneratorModule, checkpoint_path, load_generator
from arvid.training.keys import LAST_CHECKPOINT

MIN_TIMES, MIN_SECONDS = 3, 2.0
"""Smallest number of timings of a clip, and smallest total time. The fastest is used: it was disturbed least."""
FINISHED = "finished"
"""File in a run folder that holds the command whose training is finished."""
FEW_CLIPS = (
    "--data.train.init_args.clips_per_video=1",
    "--data.val.init_args.clips_per_video=4",
)
"""Options of `arvid fit` for a trial on a user's videos. There are few clips, because all are encoded first. A score
needs four validation clips, which may come from one video."""
REFERENCES = "references"
"""Folder of the reference rows, beside the variants' folders."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of a comparison: a run to train, or an existing model."""

    name: str
    """Name of the row and of its folder."""
    configs: tuple[str, ...] = ()
    """Configurations of `arvid fit`, by name or path; later ones win."""
    options: tuple[str, ...] = ()
    """Options of `arvid fit` for this variant only."""
    checkpoint: Path | None = None
    """Run folder or file of an existing model: another variant's, or a published one. None: train."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Sampling options that replace the model's own."""


def fit_job(name: str, configs: Sequence[str], run: Path, options: Sequence[str] = ()) -> Job:
    """`arvid fit` as a job."""
    named = [argument for config in configs for argument in ("--config", config)]
    return Job(name, ["fit", *named, "--run", str(run), *options], marker=run / FINISHED)


def train(variants: Sequence[Variant], out: Path, options: Sequence[str] = ()) -> None:
    """Train the variants without a checkpoint, each in OUT/NAME; on a CPU in parallel.

    `options` of `arvid fit` apply to all and win over a variant's own. If a training fails, raises UserError with the
    end of its log.
    """
    jobs = [
        fit_job(v.name, v.configs, out / v.name, [*v.options, *options])
        for v in variants
        if v.checkpoint is None
    ]
    run_side_by_side(jobs, out)


def model_path(variant: Variant, out: Path) -> Path:
    """The checkpoint file of a variant. Raises UserError if it does not exist."""
    return checkpoint_path(variant.checkpoint or out / variant.name)


def load_variant(variant: Variant, out: Path) -> GeneratorModule:
    """A variant's model with the variant's sampling options."""
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
    references: Sequence[Variant] | None = None,
) -> list[ResultRecord]:
    """Score all variants and the reference rows under each protocol, one at a time so that speeds are comparable.

    Args:
        variants: variants that are trained or have a checkpoint.
        protocols: the protocols.
        out: records go to OUT/NAME and below OUT/references.
        real: protocol name -> real clips, for protocols with a `clip` (see `real_clips`).
        references: the variants whose tokenizers and first untrained model are reference rows; all by default. If
            empty, there are no reference rows.

    Raises UserError if the settings of `references` differ.
    """
    records = []
    references = variants if references is None else references
    for protocol in protocols:
        print(f"\nScoring under {protocol.name}: {protocol.summary}", flush=True)
        dataset = (real or {}).get(protocol.name)
        runs = [run_folder(p) for p in dict.fromkeys(model_path(v, out) for v in references)]
        if runs:
            records += evaluate_references(runs, protocol, out / REFERENCES, dataset)
        for variant in variants:
            with _naming(variant):
                records.append(_score_variant(variant, protocol, out, dataset))
    return records


@contextmanager
def _naming(variant: Variant) -> Iterator[None]:
    """UserErrors in the block name the row."""
    try:
        yield
    except UserError as error:
        raise UserError(f"Row {variant.name}: {error}") from error


def _score_variant(
    variant: Variant, protocol: Protocol, out: Path, real: VideoDataset | None
) -> ResultRecord:
    path = model_path(variant, out)
    model = load_variant(variant, out)
    row = ModelRow(model, variant.name, run=run_folder(path), checkpoint_sha256=sha256_file(path))
    dataset = scored_clips(model, protocol, real)
    return evaluate(
        row,
        protocol,
        dataset,
        out / variant.name,
        description=model.description,
        training=training_set(model, protocol),
    )


def scored_clips(
    model: GeneratorModule, protocol: Protocol, real: VideoDataset | None = None
) -> VideoDataset:
    """The real clips of a protocol: `real`, or the validation set of the model's training.

    Raises UserError if the protocol has a `clip` and `real` is None.
    """
    if not protocol.clip:
        return validation_set(model)
    if real is None:
        raise UserError(f"Protocol {protocol.name} needs real clips: {protocol.real_split}.")
    return real


def run_folder(path: Path) -> Path:
    """The run folder of a checkpoint; the file itself if it is not in a run."""
    in_run = path.parent.name == LAST_CHECKPOINT.parent.name
    return path.parents[1] if in_run else path


def folders(records: Sequence[ResultRecord]) -> list[Path]:
    """The run folders of the records, in order: the input of `write_report`."""
    return list(dict.fromkeys(r.folder.parent for r in records if r.folder is not None))


def usable(protocol: Protocol) -> tuple[Protocol, list[str]]:
    """The protocol with only those metrics whose weights exist, and one note per missing metric.

    Raises UserError if no metric is left.
    """
    kept, notes = [], []
    for name in protocol.metrics:
        try:
            registry.get("metrics", name).for_protocol(protocol)
            kept.append(name)
        except UserError as error:
            notes.append(left_out(name, str(error)))
    if not kept:
        raise UserError(f"No metric of the protocol {protocol.name} has its weights: {notes[0]}")
    return dataclasses.replace(protocol, metrics=tuple(kept)), notes


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed of the generation of one clip alone."""

    frames: int
    """Number of generated frames, without given ones."""
    steps: int
    """Evaluations of the main network."""
    seconds: float
    """Time to generate the tokens."""
    decoding_seconds: float

    @property
    def frames_per_second(self) -> float:
        """Frames per second, decoding included."""
        return self.frames / (self.seconds + self.decoding_seconds)


def measure_speed(
    variant: Variant,
    protocol: Protocol,
    out: Path,
    *,
    real: Mapping[str, VideoDataset] | None = None,
) -> Speed:
    """Time the generation of one clip with a protocol's given frames: the fastest of several runs after a warm-up.

    `real` as in `score`.
    """
    with _naming(variant):
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
    while len(found) <= MIN_TIMES or sum(map(sum, found)) < MIN_SECONDS:  # the first is a warm-up
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
    """Current time, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def data_options(data: Path, val: Path | None = None) -> list[str]:
    """Options of `arvid fit` that set a setting's clips: folders of class folders, or manifests.

    Without `val` the data are split into training and validation. Raises UserError if a path does not exist.
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


def condition_options(data: Path) -> list[str]:
    """Options of `arvid fit` that train without captions if no video of a folder or manifest has one. Otherwise none.

    Raises UserError if there are no videos.
    """
    entries = find_videos(data) if data.is_dir() else read_manifest(data)
    if entries.has("caption"):
        return []
    print(f"{data}: no video has a class or caption. The models are trained without a condition.")
    return ["--model.init_args.text=null"]


def tokenizer_option(*, continuous: str | None = None, discrete: str | None = None) -> str:
    """The option of `arvid fit` that replaces a setting's tokenizers."""
    # One option for both: a separate option would read null as a name.
    value = json.dumps({"continuous": continuous, "discrete": discrete})
    return f"--model.init_args.tokenizers={value}"


def named_paths(given: Sequence[str]) -> dict[str, Path]:
    """Parse NAME=PATH arguments into name -> path. Raises UserError for another form or a duplicate name."""
    found: dict[str, Path] = {}
    for pair in given:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise UserError(f"Give a name and a path as NAME=PATH, not {pair!r}.")
        if name in found:
            raise UserError(f"The name {name} is given twice.")
        found[name] = Path(path)
    return found
