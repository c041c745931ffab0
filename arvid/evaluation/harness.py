"""The harness: scores one row under a protocol and writes its record.

The real clips that provide the conditions are split into batches. Any number of processes generate and measure them and
write the measurements to disk. The values are then computed from all measurements.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arvid import registry
from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data.loading import load_batches
from arvid.data.video import write_video
from arvid.evaluation.code_identity import code_identity
from arvid.evaluation.parts import Measurements, Parts
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.real_measurements import RealMeasurements
from arvid.evaluation.real_statistics import RealStatistics
from arvid.evaluation.records import (
    EVALUATION_FOLDER,
    Budget,
    ClipEntry,
    ResultRecord,
    code_version,
    load,
    over_repeats,
    save,
)
from arvid.evaluation.row_kinds import Row, Videos
from arvid.evaluation.scores import Measured, Score, lacking, optional_scores, scores_for
from arvid.evaluation.training_clips import TrainingClips
from arvid.files import atomic_write, sha256_json
from arvid.hardware import hardware
from arvid.metrics.rollout import StepCurve, step_curve
from arvid.processes import rank_and_count, wait_for_all
from arvid.progress import Bar
from arvid.sampling.contact_sheet import write_png
from arvid.tensor_files import save_tensors

logger = logging.getLogger(__name__)

NUM_SHOWN = 8
"""Number of clips per row that are written as videos for the page."""
SHOWN_FPS = 8.0
"""Frame rate of these videos if the protocol states none."""

FrameValues = dict[str, Float[np.ndarray, "b t"]]
"""Metric name -> value of each frame of each clip."""


def evaluate(
    row: Row,
    protocol: Protocol,
    dataset: VideoDataset,
    folder: Path,
    *,
    description: dict[str, Any],
    training: VideoDataset | None = None,
    progress: bool = True,
) -> ResultRecord:
    """Score a row. Writes its record and a few of its clips into a run folder.

    An interrupted evaluation continues with the missing batches, and a finished one is not repeated. The result is the
    same for any number of processes (see `arvid.evaluation.parts`).

    Args:
        row: the row to score.
        protocol: defines how.
        dataset: the real clips.
        folder: run folder. The record is FOLDER/evaluation/<protocol>.json, with a part of the protocol's hash in the
            name if a record of another protocol with the same name exists.
        description: `setting` and `setting_hash` of the comparison.
        training: the training set, for metrics that compare with it.
        progress: show a progress bar over the batches.

    Raises UserError if there are too few real clips, a metric lacks something (e.g. weights), the folder holds another
    row's record, or the row's clips differ from the real ones in length or size.
    """
    started = time.monotonic()
    described = protocol.describe(dataset)
    optional, notes = optional_scores(protocol, dataset, training)
    metrics: set[type[Score]] = {registry.get("metrics", name) for name in protocol.metrics}
    metrics.update(map(type, optional.values()))
    measuring = {type(dataset), *metrics}
    if not any(metric.uses_training for metric in metrics):
        training = None
    identity = sha256_json(
        [
            *(described["hash"], row.identity(), description["setting_hash"]),
            code_identity(measuring | row.classes()),
            *([sorted(optional)] if protocol.optional_metrics else []),
            *([training.fingerprint()] if training is not None else []),
        ]
    )  # everything that the values depend on
    path = _record_path(folder / EVALUATION_FOLDER, described, row.name)
    if (found := _readable(path)) is not None and found.identity == identity:
        logger.info("%s is already scored: %s", row.name, path)
        return found
    scores = {**_required_scores(protocol, dataset, training), **optional}
    if protocol.trajectories > 1:
        _require_of_trajectories(scores, protocol)
    kept = _kept(dataset, protocol, code_identity(measuring))
    clips = None
    if training is not None:
        training_code = code_identity({*measuring, type(training)})
        clips = TrainingClips(training, protocol, scores, training_code)
    work = _Evaluation(row, protocol, dataset, scores, path, identity, kept, clips)
    _measure_share(work, clips, progress)
    if rank_and_count()[0] == 0:
        record = ResultRecord(
            **work.results(),
            name=row.name,
            row=row.kind,
            setting=description["setting"],
            setting_hash=description["setting_hash"],
            protocol=described,
            notes=(*notes, *row.notes(protocol)),
            earlier={**description.get("earlier", {}), **_earlier_data(dataset)},
            identity=identity,
            wall_seconds=time.monotonic() - started,
        )
        save(record, path)
        work.parts.remove()
    wait_for_all()  # the record must exist before other ranks load it
    return load(path)


def _measure_share(work: _Evaluation, clips: TrainingClips | None, progress: bool) -> None:
    """Measure the missing batches of this process, then wait for all processes: rank 0 reads all batches."""
    rank, num_processes = rank_and_count()
    work.run([b for b in work.batches[rank::num_processes] if b.name not in work.parts], progress)
    if clips:
        names = [name for name in [*clips.batches][rank::num_processes] if name not in work.parts]
        clips.measure(names, work.parts, progress)
    wait_for_all()


def _required_scores(
    protocol: Protocol, dataset: VideoDataset, training: VideoDataset | None
) -> dict[str, Score]:
    scores = scores_for(protocol)
    for name, score in scores.items():
        if lack := lacking(score, dataset, training):
            raise UserError(f"Protocol {protocol.name} cannot measure {name}: {lack}.")
    return scores


def _kept(
    dataset: VideoDataset, protocol: Protocol, code: str
) -> RealMeasurements | RealStatistics:
    """Measurements of the real clips, from a statistics file or the cache."""
    if isinstance(dataset, RealStatistics):
        return dataset
    return RealMeasurements(dataset, protocol.scored, code)


def _require_of_trajectories(scores: dict[str, Score], protocol: Protocol) -> None:
    usual = Score.of_trajectories
    unfit = [name for name, score in scores.items() if type(score).of_trajectories is usual]
    if unfit:
        raise UserError(
            f"Protocol {protocol.name} makes {protocol.trajectories} clips for each real clip (trajectories), which "
            f"{', '.join(unfit)} cannot score: leave it out."
        )


def _earlier_data(dataset: VideoDataset) -> dict[str, str]:
    """The hash of the real clips as an earlier version of arvid wrote it into records."""
    earlier = dataset.earlier_fingerprint()
    return {} if earlier is None else {"protocol.data": earlier[:16]}


def _record_path(folder: Path, described: dict[str, Any], name: str) -> Path:
    """Path of a row's record. It never overwrites the record of another protocol or row.

    `described` is the protocol as `Protocol.describe` gives it. Raises UserError if another row's record is there.
    """
    path = folder / f"{described['name']}.json"
    found = _readable(path)
    if found is not None and found.protocol_hash != described["hash"]:
        path = path.with_name(f"{path.stem}-{described['hash'][:6]}.json")
        found = _readable(path)
    if found is not None and found.name != name:
        raise UserError(f"{path} is the record of {found.name}: give {name} a folder of its own.")
    return path


def _readable(path: Path) -> ResultRecord | None:
    """The record at a path; None if it is missing or damaged (it is then made again)."""
    try:
        return load(path)
    except UserError:
        return None


@dataclass(frozen=True)
class _Batch:
    """Clips that are generated together, or real clips that are measured together."""

    name: str
    index: int
    """Index over all folds. It selects the seed of the generation."""
    run: int | None
    """Index over all folds and, in each, over the clips that are generated for each real clip. None for a batch of a
    separate real set."""
    start: int
    """Index of its first clip in the fold."""
    indices: list[int]
    """Dataset indices of the real clips."""


class _Evaluation:
    """One row under one protocol: its batches and the results."""

    def __init__(
        self,
        row: Row,
        protocol: Protocol,
        dataset: VideoDataset,
        scores: dict[str, Score],
        path: Path,
        identity: str,
        kept: RealMeasurements | RealStatistics,
        training: TrainingClips | None,
    ) -> None:
        self.row = row
        self.protocol = protocol
        self.dataset = dataset
        self.folder = path.parent
        self.stem = path.stem
        self.scores = scores
        self.chosen = [protocol.choose(dataset, fold)[0] for fold in range(protocol.folds)]
        runs = [clips for clips in self.chosen for _ in range(protocol.trajectories)]
        self.batches = [*self._plan(runs, generated=True), *self._plan_real()]
        self.parts = Parts(path.parent, path.stem, identity)
        self.kept = kept
        self.training = training

    def _plan_real(self) -> list[_Batch]:
        real = self.protocol.real(self.dataset)
        return [] if real is None else self._plan([real], generated=False)

    def _plan(self, runs: list[list[int]], *, generated: bool) -> list[_Batch]:
        batches: list[_Batch] = []
        for index, indices in enumerate(runs):
            for i, part in enumerate(self.protocol.in_batches([indices])):
                name = f"{index}-{i:05d}" if generated else f"real-{i:05d}"
                start = i * self.protocol.batch_size
                run = index if generated else None
                batches.append(_Batch(name, len(batches), run, start, part))
        return batches

    def run(self, batches: list[_Batch], progress: bool) -> None:
        """Generate and measure batches."""
        # Kept batches are taken before any clip is decoded.
        batches = [batch for batch in batches if not self._take_kept(batch)]
        loaded = load_batches(self.dataset, [batch.indices for batch in batches])
        bar = Bar(loaded, self.row.name, len(batches), unit="batch", hidden=not progress)
        for batch, clips in zip(batches, bar, strict=True):
            measured, seconds = self._measure(batch, clips)
            self.parts.write(batch.name, measured, seconds)

    def _take_kept(self, batch: _Batch) -> bool:
        """Take the measurements of a batch of real clips from the cache. Returns whether all of them were there."""
        if batch.run is not None:
            return False
        found = {name: self.kept.read(s, batch.indices) for name, s in self.scores.items()}
        measured = {name: m for name, m in found.items() if m is not None}
        if len(measured) < len(found):
            return False
        self.parts.write(batch.name, measured, 0.0)
        return True

    def _measure(self, batch: _Batch, clips: list[Clip]) -> tuple[dict[str, Measured], float]:
        self.protocol.require_whole_steps(len(clips[0].video))
        real = self._scored(np.stack([clip.video for clip in clips]))
        if batch.run is None:
            return self._measure_real(batch, real), 0.0
        before = time.monotonic()
        videos = self.row.generate(clips, self.protocol, batch.index)
        seconds = time.monotonic() - before
        self._require_like(videos, clips)
        self._write_shown(batch, clips, videos)
        generated, targets = self._scored(videos), self.row.target_clips(clips)
        measured = {n: dict(s.measure(generated, real, targets)) for n, s in self.scores.items()}
        # Without a separate real set these clips are also the real set.
        if self.protocol.num_real is None:
            for name, found in self._measure_real(batch, real).items():
                measured[name].update(found)
        return dict(measured), seconds

    def _measure_real(self, batch: _Batch, real: Tensor) -> dict[str, Measured]:
        return {n: self.kept.measure(s, batch.indices, real) for n, s in self.scores.items()}

    def _scored(self, videos: Videos) -> Tensor:
        return torch.from_numpy(videos[:, self.protocol.scored].copy())

    def _require_like(self, videos: Videos, clips: list[Clip]) -> None:
        wanted = (len(clips), *clips[0].video.shape)
        if videos.dtype != np.uint8 or videos.shape != wanted:
            raise UserError(
                f"{self.row.name} makes clips {videos.dtype} {videos.shape[1:]} (frames, height, width, colours); "
                f"protocol {self.protocol.name} compares clips uint8 {wanted[1:]}."
            )

    def _write_shown(self, batch: _Batch, clips: list[Clip], videos: Videos) -> None:
        """Write the clips that the page shows, and the last given frame of each."""
        left = NUM_SHOWN - batch.start
        if batch.run != 0 or left <= 0:
            return
        shown = self.row.page_videos(clips, videos)
        for i, (clip, video) in enumerate(zip(clips[:left], shown[:left], strict=True)):
            entry = self._entry(batch.start + i, clip)
            write_video(self.folder / entry.file, video, self._fps)
            if entry.first_frame:
                last_given = clip.video[self.protocol.condition_frames - 1]
                write_png(self.folder / entry.first_frame, last_given)

    def _entry(self, index: int, clip: Clip) -> ClipEntry:
        name = f"{self.stem}/{index:03d}"
        first = f"{name}.png" if self.protocol.condition_frames else None
        return ClipEntry(file=f"{name}.mp4", prompt=clip.caption or clip.name, first_frame=first)

    def _clip_entries(self, measured: Measurements) -> tuple[ClipEntry, ...]:
        """The clips written for the page. Writes the nearest training clip of each, for a trained row."""
        shown = enumerate(self.chosen[0][:NUM_SHOWN])
        entries = [self._entry(i, self.dataset[index]) for i, index in shown]
        if self.training is None or self.row.kind != "trained":
            return tuple(entries)
        found = (score.nearest_training(measured[name]) for name, score in self.scores.items())
        for i, position in enumerate(next(filter(None, found), [])[:NUM_SHOWN]):
            file = f"{self.stem}/{i:03d}-training.mp4"
            write_video(self.folder / file, self.training.video(position), self._fps)
            entries[i] = dataclasses.replace(entries[i], nearest_training=file)
        return tuple(entries)

    @property
    def _fps(self) -> float:
        """Frame rate of the clips written for the page."""
        return (self.protocol.clip.fps if self.protocol.clip else None) or SHOWN_FPS

    def results(self) -> dict[str, Any]:
        """The record's fields that depend on the row and the finished batches."""
        real, _ = self.parts.joined([b.name for b in self.batches if b.run is None])
        training, _ = self.parts.joined([*self.training.batches] if self.training else [])
        folds, seconds = [], 0.0
        for fold in range(self.protocol.folds):
            found, took = self._measured(fold)
            folds.append({n: {**found[n], **real.get(n, {})} for n in self.scores})
            seconds += took
        self._keep(folds)
        folds = [{n: {**m, **training.get(n, {})} for n, m in fold.items()} for fold in folds]
        name = self.protocol.name
        values = [[v for n, s in self.scores.items() for v in s.values(f[n], name)] for f in folds]
        frames = self._frame_values(folds)
        return {
            "metrics": over_repeats(values, "deviation of folds"),
            "factors": self.row.factors,
            "options": self.row.options,
            "budget": self._budget(seconds),
            "curve": self.row.curve(),
            "steps_curve": self._curves(frames),
            "rollout": self._rollout(frames),
            "clips": self._clip_entries(folds[0]),
            "per_clip": self._write_per_clip(folds),
            "checkpoint_sha256": self.row.checkpoint_sha256,
            "seed": self.protocol.seed,
            "code_version": code_version(),
            "hardware": hardware(),
        }

    def _measured(self, fold: int) -> tuple[Measurements, float]:
        """The measurements of a fold's clips, and the seconds that their generation took."""
        num = self.protocol.trajectories
        joined = [
            self.parts.joined([b.name for b in self.batches if b.run == run])
            for run in range(fold * num, (fold + 1) * num)
        ]
        seconds = sum(took for _, took in joined)
        if num == 1:
            return joined[0][0], seconds
        runs = [found for found, _ in joined]
        best = {n: s.of_trajectories([r[n] for r in runs]) for n, s in self.scores.items()}
        return {n: dict(found) for n, found in best.items()}, seconds

    def _keep(self, folds: list[Measurements]) -> None:
        """Write the measurements (features, errors of frames) of each fold for other statistics: <score>.<name>."""
        for fold, measured in enumerate(folds):
            tensors = {f"{s}.{n}": t for s, found in measured.items() for n, t in found.items()}
            save_tensors(self.folder / f"{self.stem}/measured-{fold}.safetensors", tensors)

    def _frame_values(self, folds: list[Measurements]) -> FrameValues:
        """Values of each frame, over the clips of all folds, by metric."""
        found: dict[str, list[np.ndarray]] = {}
        for fold in folds:
            for name, score in self.scores.items():
                for key, values in score.frame_values(fold[name]).items():
                    found.setdefault(key, []).append(values)
        return {key: np.concatenate(values) for key, values in found.items()}

    def _curves(self, frames: FrameValues) -> dict[str, tuple[float | None, ...]]:
        """Mean over clips at each frame, by metric; None for the frames before the scored ones."""
        unscored: tuple[None, ...] = (None,) * self.protocol.scored.start
        return {key: (*unscored, *values.mean(0).tolist()) for key, values in frames.items()}

    def _rollout(self, frames: FrameValues) -> dict[str, StepCurve]:
        """Curves over autoregressive steps, by metric; empty unless the task is prediction."""
        if self.protocol.task != "prediction":
            return {}
        given, length = self.protocol.predicted.start, self.protocol.frames_per_step
        predicted = {key: values[:, given:] for key, values in frames.items()}
        return {key: step_curve(v, length) for key, v in predicted.items() if v.size}

    def _write_per_clip(self, folds: list[Measurements]) -> str | None:
        """Write a CSV file with one line per clip. Returns its name, or None if no metric has values of clips."""
        columns = [
            {k: v for n, s in self.scores.items() for k, v in s.per_clip(fold[n]).items()}
            for fold in folds
        ]
        if not columns[0]:
            return None
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["fold", "clip", *columns[0]])
        for fold, found in enumerate(columns):
            writer.writerows(
                (fold, *line) for line in zip(self.chosen[fold], *found.values(), strict=True)
            )
        name = f"{self.stem}/per-clip.csv"
        with atomic_write(self.folder / name) as temporary:
            temporary.write_text(file.getvalue())
        return name

    def _budget(self, seconds: float) -> Budget:
        clip = self.dataset[self.chosen[0][0]]
        budget = self.row.budget(clip, self.protocol)
        if budget.parameters is None:
            return budget
        frames = len(clip.video) - self.protocol.condition_frames
        num = sum(map(len, self.chosen)) * self.protocol.trajectories
        return dataclasses.replace(budget, frames_per_second=num * frames / seconds)
