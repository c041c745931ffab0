"""Batches for training: of frames for a tokenizer, of cached tokens for a generator.

Which clips make up a step is a function of (seed, step) alone, so an interrupted run goes on with the very batch
that came next, and every paradigm of a comparison sees the same clips in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from arvid.contracts import UserError, VideoDataset
from arvid.data.collate import Example, collate, normalise
from arvid.data.token_cache import TokenCache, describe_clip, encode_dataset


class VideoExamples(Dataset[Example]):
    """A dataset's clips as frames."""

    def __init__(self, dataset: VideoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        clip = self.dataset[index]
        return {"video": normalise(clip.video), **describe_clip(clip)}


class StepSampler(Sampler[list[int]]):
    """Endless batches of indices: one permutation of the clips after another, from `start` batches on.

    Args:
        num_items: clips in the set.
        batch_size: clips per process and step.
        seed: decides the permutations.
        start: batches already done.
        rank, world_size: this process and how many there are; they share each step's clips.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[int]]:
        step_size = self.batch_size * self.world_size
        position = self.start * step_size + self.rank * self.batch_size
        epoch, order = -1, np.empty(0, int)
        while True:
            batch = []
            for place in range(position, position + self.batch_size):
                if place // self.num_items != epoch:
                    epoch = place // self.num_items
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.num_items)
                batch.append(int(order[place % self.num_items]))
            yield batch
            position += step_size


class VideoDataModule(LightningDataModule):
    """Training and validation clips.

    The module that is trained decides what it gets: one that `trains_on_tokens` gets its tokenizer's tokens, from the
    cache; another gets frames.

    Args:
        train: clips to train on.
        val: clips to validate on, of the same shape.
        batch_size: clips per process and step.
        num_workers: processes that load clips.
        seed: decides the order of the clips.
    """

    def __init__(
        self,
        train: VideoDataset,
        val: VideoDataset,
        *,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.train = train
        self.val = val
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.clip_shape = self._clip_shape()
        self.num_classes = len(train.classes)

    def _clip_shape(self) -> tuple[int, int, int]:
        """Frames, height and width of the clips."""
        frames, height, width = self.train[0].video.shape[:3]
        if self.val[0].video.shape[:3] != (frames, height, width):
            raise UserError(
                f"Training clips are {(frames, height, width)} (frames, height, width), "
                f"validation clips {self.val[0].video.shape[:3]}: they must be equal."
            )
        return frames, height, width

    def prepare_data(self) -> None:
        """Fill the token cache, on one process only."""
        for dataset in (self.train, self.val):
            self._examples(dataset)

    def encode(self, module: Any) -> list[Path]:
        """Fill the token cache for a module that trains on tokens; the folders where they lie."""
        sets = (self.train, self.val)
        return [encode_dataset(module.tokenizer, module.tokenizer_hash, s).folder for s in sets]

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        examples = self._examples(self.train)
        trainer = self.trainer
        assert trainer is not None
        sampler = StepSampler(
            len(examples),
            self.batch_size,
            seed=self.seed,
            start=trainer.global_step * trainer.accumulate_grad_batches,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        return DataLoader(
            examples,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            self._examples(self.val),
            batch_size=self.batch_size,
            collate_fn=collate,
            num_workers=self.num_workers,
        )

    def _examples(self, dataset: VideoDataset) -> VideoExamples | TokenCache:
        module: Any = self.trainer.lightning_module if self.trainer else None
        if module is None or not getattr(module, "trains_on_tokens", False):
            return VideoExamples(dataset)
        return encode_dataset(module.tokenizer, module.tokenizer_hash, dataset)
