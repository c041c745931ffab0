"""Callbacks of a training: seeds, progress bar, throughput, sample videos."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from arvid.data.datamodule import VideoDataModule
from arvid.data.division import Division
from arvid.data.stand_ins import read_clip
from arvid.nn import draws
from arvid.nn.draws import SharedStream, part_of
from arvid.progress import Bar
from arvid.ranges import FPS, at_least
from arvid.sampling.contact_sheet import side_by_side
from arvid.sampling.sample import Conditions, sample
from arvid.training.generator_module import GeneratorModule
from arvid.training.pictures import show_video
from arvid.training.sharding import gathered
from arvid.training.summary import shown


class SeedEachStep(Callback):
    """Makes the randomness of a step (times, noises, masks, dropout) a function of (seed, micro-batch).

    So a resumed run computes exactly what an uninterrupted one would, on any number of processes. Processes that share
    a batch draw from one stream (see `arvid.nn.draws`).
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        division: Division = getattr(_data(trainer), "division", Division(len(batch)))
        # Batches of all processes in the order of the data; `parts` neighbours form one micro-batch.
        batch_index = batch_idx * trainer.world_size + trainer.global_rank
        micro_batch, part = divmod(batch_index, division.parts)
        # Factor 4096 leaves room for `seed + part` below, so no two micro-batches share a seed.
        seed = (self.seed * 1_000_003 + micro_batch) * 4096 % 2**63
        torch.manual_seed(seed)
        if division.parts > 1:
            total = division.batch_size * division.parts
            draws.share(SharedStream(pl_module.device), part_of(total, part, division.parts))
            torch.manual_seed(seed + part)  # for code that does not draw from the stream

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        draws.share(None)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Use the same masks and noises in every validation."""
        torch.manual_seed(self.seed)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if trainer.world_size == 1 or not isinstance(data := _data(trainer), VideoDataModule):
            return
        if batch_idx == 0:  # not earlier: the data loader draws a number when it starts
            self._validation = SharedStream(pl_module.device)
            torch.manual_seed(self.seed + trainer.global_rank)
        draws.share(self._validation, data.val_sampler().part(batch_idx))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        draws.share(None)

    def on_exception(self, *args: Any) -> None:
        draws.share(None)


def _data(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)


class StepBar(ProgressBar):
    """Progress over the steps of the whole training (arvid counts steps, not epochs), with the last losses."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Bar | None = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar = Bar(
            work=Path(trainer.default_root_dir).name,
            total=trainer.max_steps if trainer.max_steps > 0 else None,
            unit="step",
            hidden=not self._enabled,
            leave=True,
            initial=trainer.global_step,
        )

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        assert self._bar is not None
        if trainer.global_step == self._bar.n:  # gradients are being accumulated
            return
        # Reading a loss makes the CPU wait for the device, so it is read only when it is shown.
        if not self._bar.disable and self._bar.is_due():
            self._bar.set_postfix_str(shown(trainer), refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(shown(trainer), refresh=False)
            self._bar.close()

    def on_exception(self, *args: Any) -> None:
        if self._bar is not None:
            self._bar.close()


class Throughput(Callback):
    """Logs tokens/s (generators only), frames/s and the training time in seconds, with loading, without validation.

    A resumed run continues the count of seconds.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.monotonic()  # validation is not training

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        step_seconds, self._last = now - self._last, now
        self.seconds += step_seconds
        rates = _rates(pl_module, batch, trainer.world_size / max(step_seconds, 1e-9))
        pl_module.log_dict({**rates, "seconds": self.seconds}, rank_zero_only=True)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]


def _rates(
    module: LightningModule, batch: dict[str, Any], batches_per_second: float
) -> dict[str, float]:
    num_clips = len(batch["label"])
    if isinstance(module, GeneratorModule):
        return {
            "tokens_per_second": num_clips * module.paradigm.grid.num_tokens * batches_per_second,
            "frames_per_second": num_clips * module.clip_shape[0] * batches_per_second,
        }
    return {"frames_per_second": num_clips * batch["video"].shape[2] * batches_per_second}


class SampleVideos(Callback):
    """Generates clips for the first captions of the validation set while a generator trains.

    The clips are written to RUN/samples/step-*.mp4 and sent to TensorBoard and wandb if these are on. A paradigm that
    needs prefix frames gets them from the validation clips.

    Args:
        every_n_steps: optimiser steps between two rounds of samples.
        num_clips: clips per round, side by side in one video.
        fps: frame rate of the video.
    """

    def __init__(self, every_n_steps: int, *, num_clips: int = 4, fps: float = 8.0) -> None:
        at_least(1).require("SampleVideos.", every_n_steps=every_n_steps, num_clips=num_clips)
        FPS.require("SampleVideos.", fps=fps)
        self.every_n_steps = every_n_steps
        self.num_clips = num_clips
        self.fps = fps
        self._sampled_at = 0
        self._given: tuple[Conditions, np.ndarray | None] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read conditions and prefix frames. Raises UserError now, not hours later, if they cannot be read."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, GeneratorModule)
        dataset = trainer.datamodule.val  # type: ignore[attr-defined]
        clips = [read_clip(dataset, i % len(dataset))[0] for i in range(self.num_clips)]
        first, required = None, pl_module.paradigm.required_frames
        if required:
            grid = dataclasses.replace(pl_module.paradigm.grid, t=required)
            num_frames = pl_module.tokenizer.spec.num_frames(grid)
            first = np.stack([clip.video[:num_frames] for clip in clips])
        self._given = Conditions.of_clips(clips), first

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps or step == self._sampled_at:
            return
        self._sampled_at = step
        with gathered(pl_module):
            if self._given is not None:
                self._sample(trainer, pl_module, *self._given)

    def _sample(
        self,
        trainer: Trainer,
        module: LightningModule,
        conditions: Conditions,
        first: np.ndarray | None,
    ) -> None:
        assert isinstance(module, GeneratorModule)
        module.eval()
        videos = sample(module, conditions, first_frames=first, progress=False)
        module.train()
        show_video(trainer, "samples", side_by_side(videos), self.fps)
