"""The harness: rows of a comparison are generated, scored and recorded under a protocol.

A row is a trained model or a reference that says what the numbers of the others mean: real clips against real
clips (the floor of a distance), the tokenizer's reconstruction (frame by frame the ceiling of every model on its
tokens), the first frame repeated, an untrained model.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from arvid import registry
from arvid.contracts import Clip, VideoDataset, VideoTokenizer
from arvid.data.collate import normalise, to_uint8
from arvid.data.video import write_video
from arvid.evaluation.budget import count_budget
from arvid.evaluation.curves import read_curve
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.records import (
    EVALUATION_FOLDER,
    Budget,
    ClipEntry,
    ResultRecord,
    code_version,
    hardware,
    save,
)
from arvid.evaluation.scores import Score
from arvid.files import atomic_write
from arvid.sampling.contact_sheet import encode_png
from arvid.sampling.sample import Conditions, sample
from arvid.training.generator_module import GeneratorModule

Videos = UInt8[np.ndarray, "b t h w 3"]
NUM_SHOWN = 8
"""Clips of each row that are kept as videos."""
SHOWN_FPS = 8.0


class Row(ABC):
    """One row of a comparison."""

    kind: Literal["trained", "reference"] = "reference"
    checkpoint_sha256: str | None = None

    def __init__(
        self, name: str, factors: dict[str, str], options: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.factors = factors
        self.options = options or {}

    @abstractmethod
    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        """Clips for the conditions (and first frames) of real ones."""

    def shown(self, clips: Sequence[Clip]) -> Sequence[Clip]:
        """The clips whose attributes those last generated are to show: the real ones by default."""
        return clips

    def exhibits(self, clips: Sequence[Clip], videos: Videos) -> list[tuple[Clip, np.ndarray]]:
        """What the page shows for the conditions of real clips: the clips generated."""
        return list(zip(clips, videos, strict=True))

    def budget(self, clip: Clip, protocol: Protocol) -> Budget:
        """What the row costs; nothing by default."""
        return Budget()

    def curve(self) -> tuple[dict[str, float | None], ...]:
        """Training curve; none by default."""
        return ()


class ModelRow(Row):
    """A generator, trained or not.

    Args:
        model: the generator.
        name: of the row.
        run: folder of its training, where its curve lies; None for an untrained model.
        checkpoint_sha256: hash of the checkpoint it comes from.
    """

    def __init__(
        self,
        model: GeneratorModule,
        name: str,
        *,
        run: Path | None = None,
        checkpoint_sha256: str | None = None,
    ) -> None:
        super().__init__(name, model.description["factors"], model.description["options"])
        self.model = model
        self.run = run
        self.kind = "reference" if run is None else "trained"
        self.checkpoint_sha256 = checkpoint_sha256

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        first = None
        if protocol.condition_frames:
            first = np.stack([clip.video[: protocol.condition_frames] for clip in clips])
        return sample(
            self.model,
            Conditions.of_clips(clips),
            first_frames=first,
            seed=protocol.seed + batch,
            progress=False,
        )

    def budget(self, clip: Clip, protocol: Protocol) -> Budget:
        spec, (_, height, width) = self.model.tokenizer.spec, self.model.clip_shape
        frames = protocol.condition_frames
        prefix = spec.grid(frames, height, width).t if frames else 0
        return count_budget(self.model, Conditions.of_clips([clip]), prefix_frames=prefix)

    def curve(self) -> tuple[dict[str, float | None], ...]:
        return read_curve(self.run) if self.run else ()


class RealRow(Row):
    """Other real clips than the ones compared with: the floor of a distance between sets."""

    def __init__(self, dataset: VideoDataset, protocol: Protocol) -> None:
        super().__init__("real", {})
        self.dataset = dataset
        self.others = protocol.choose(dataset)[1]
        self.last: list[Clip] = []

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        start = batch * protocol.batch_size
        self.last = [self.dataset[i] for i in self.others[start : start + len(clips)]]
        return np.stack([clip.video for clip in self.last])

    def shown(self, clips: Sequence[Clip]) -> Sequence[Clip]:
        return self.last

    def exhibits(self, clips: Sequence[Clip], videos: Videos) -> list[tuple[Clip, np.ndarray]]:
        """The very clips that the other rows were asked for, so that a column of the page holds one scene."""
        return [(clip, clip.video) for clip in clips]


class ReconstructionRow(Row):
    """The real clips as the tokenizer reconstructs them: frame by frame no model on its tokens can do better."""

    def __init__(self, tokenizer: VideoTokenizer) -> None:
        token_type = tokenizer.spec.type
        super().__init__(f"reconstruction ({token_type})", {"token_type": token_type})
        self.tokenizer = tokenizer

    @torch.no_grad()
    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        device = next(self.tokenizer.parameters()).device
        video = torch.stack([normalise(clip.video) for clip in clips]).to(device)
        return to_uint8(self.tokenizer.decode(self.tokenizer.encode(video))).cpu().numpy()


class FirstFrameRow(Row):
    """The first frame standing still."""

    def __init__(self) -> None:
        super().__init__("first frame repeated", {})

    def generate(self, clips: Sequence[Clip], protocol: Protocol, batch: int) -> Videos:
        last = max(protocol.condition_frames - 1, 0)
        return np.stack([np.repeat(c.video[last : last + 1], len(c.video), 0) for c in clips])


def evaluate(
    row: Row,
    protocol: Protocol,
    dataset: VideoDataset,
    folder: Path,
    *,
    description: dict[str, Any],
    progress: bool = True,
) -> ResultRecord:
    """Score a row and write its record and a few of its clips into a run folder.

    Args:
        row: what is scored.
        protocol: how.
        dataset: the validation set that the real clips are chosen from.
        folder: run folder; the record becomes FOLDER/evaluation/<protocol>.json.
        description: `setting` and `setting_hash` of the comparison.
        progress: show a bar over the batches.
    """
    started = time.monotonic()
    scores: list[Score] = [registry.get("metrics", name)() for name in protocol.metrics]
    chosen = protocol.choose(dataset)[0]
    num_clips = len(chosen)
    kept: list[tuple[Clip, np.ndarray]] = []
    seconds = 0.0
    batches = range(0, num_clips, protocol.batch_size)
    for batch, start in enumerate(tqdm(batches, desc=row.name, disable=not progress, leave=False)):
        clips = [dataset[i] for i in chosen[start : start + protocol.batch_size]]
        before = time.monotonic()
        videos = row.generate(clips, protocol, batch)
        seconds += time.monotonic() - before
        _update(scores, videos, clips, row.shown(clips), protocol)
        kept += row.exhibits(clips, videos)[: NUM_SHOWN - len(kept)]
    frames = num_clips * (len(kept[0][0].video) - protocol.condition_frames)
    budget = row.budget(kept[0][0], protocol)
    if budget.parameters is not None:
        budget = dataclasses.replace(budget, frames_per_second=frames / seconds)
    record = ResultRecord(
        name=row.name,
        row=row.kind,
        factors=row.factors,
        options=row.options,
        setting=description["setting"],
        setting_hash=description["setting_hash"],
        protocol=protocol.describe(dataset),
        metrics=tuple(value for score in scores for value in score.values(protocol.name)),
        budget=budget,
        curve=row.curve(),
        steps_curve=_curves(scores, protocol),
        clips=_write_clips(kept, protocol, folder / EVALUATION_FOLDER),
        checkpoint_sha256=row.checkpoint_sha256,
        seed=protocol.seed,
        code_version=code_version(),
        hardware=hardware(),
        wall_seconds=time.monotonic() - started,
    )
    save(record, folder / EVALUATION_FOLDER / f"{protocol.name}.json")
    return record


def _update(
    scores: list[Score],
    videos: np.ndarray,
    clips: Sequence[Clip],
    asked: Sequence[Clip],
    protocol: Protocol,
) -> None:
    """Feed the metrics with the frames after the given ones."""
    generated = torch.from_numpy(videos[:, protocol.condition_frames :].copy())
    real = np.stack([clip.video[protocol.condition_frames :] for clip in clips])
    for score in scores:
        score.update(generated, torch.from_numpy(real), asked)


def _curves(scores: list[Score], protocol: Protocol) -> dict[str, tuple[float | None, ...]]:
    """Curves over all frames of a clip; the given ones are not scored."""
    given: tuple[None, ...] = (None,) * protocol.condition_frames
    return {
        name: (*given, *values) for score in scores for name, values in score.per_frame().items()
    }


def _write_clips(
    shown: list[tuple[Clip, np.ndarray]], protocol: Protocol, folder: Path
) -> tuple[ClipEntry, ...]:
    entries = []
    for i, (clip, video) in enumerate(shown):
        file = f"{protocol.name}/{i:03d}.mp4"
        write_video(folder / file, video, SHOWN_FPS)
        first = None
        if protocol.condition_frames:
            first = f"{protocol.name}/{i:03d}.png"
            with atomic_write(folder / first) as temporary:
                temporary.write_bytes(encode_png(clip.video[protocol.condition_frames - 1]))
        entries.append(ClipEntry(file=file, prompt=clip.caption or clip.name, first_frame=first))
    return tuple(entries)
