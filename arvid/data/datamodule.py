"""Training batches: frames for a tokenizer, cached tokens for a generator.

The clips of a step depend on (seed, step) alone. So a resumed run continues with the next batch exactly, and all
paradigms of a comparison see the same clips in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset, Sampler

from arvid.contracts import UserError, VideoDataset
from arvid.data.collate import Example, collate, normalise
from arvid.data.division import Division, divide
from arvid.data.order import Order, WholeOrder, WindowOrder
from arvid.data.stand_ins import MAX_UNREADABLE, Tally, read_clip
from arvid.data.token_cache import CLIPS_PER_SHARD, cache_folder, describe_clip, encode_dataset
from arvid.data.token_shards import TokenShards
from arvid.nn.draws import Part, part_of
from arvid.nn.text import FeatureReader
from arvid.ranges import SHARE, at_least


class VideoExamples(Dataset[Example]):
    """Clips of a dataset as frames. Unreadable clips are replaced by others and listed in `unreadable`."""

    def __init__(self, dataset: VideoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        clip, failed = read_clip(self.dataset, index)
        unreadable = {"unreadable": failed} if failed else {}
        return {"video": normalise(clip.video), **describe_clip(clip), **unreadable}


class TokenExamples(Dataset[Example]):
    """Encoded clips as tokens, with the cached text features of their captions if `reader` is given."""

    def __init__(self, shards: TokenShards, reader: FeatureReader | None = None) -> None:
        self.shards = shards
        self.reader = reader

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Example:
        example = self.shards.example(index)
        return {**example, "text": self.reader(example["caption"])} if self.reader else example


class StepSampler(Sampler[list[int]]):
    """Endless batches of indices.

    Args:
        num_items: number of clips in the set.
        batch_size: clips per batch of a process.
        seed: seed of the order.
        start: number of batches to skip.
        rank, world_size: this process, and the number of processes that share each step.
        order: order of the clips. By default a new permutation of all clips in each epoch.
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
        order: Order | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.start = start
        self.rank = rank
        self.world_size = world_size
        self.order = order or WholeOrder(num_items, seed)

    def __iter__(self) -> Iterator[list[int]]:
        step_size = self.batch_size * self.world_size
        position = self.start * step_size + self.rank * self.batch_size
        while True:
            # A batch may span two epochs.
            yield [self.order(i) for i in range(position, position + self.batch_size)]
            position += step_size


class PartSampler(Sampler[list[int]]):
    """Batches of indices in order; each process takes its part of every batch.

    All processes have the same number of batches: see `arvid.nn.draws.part_of`.
    """

    def __init__(
        self, num_items: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.num_items = num_items
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return math.ceil(self.num_items / self.batch_size)

    def part(self, batch: int) -> Part:
        """The part of a batch that this process holds."""
        total = min(self.batch_size, self.num_items - batch * self.batch_size)
        return part_of(total, self.rank, self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(len(self)):
            part = self.part(batch)
            first = batch * self.batch_size + part.start
            yield list(range(first, first + part.count))


class BatchLoader(DataLoader[Any]):
    """Batches of examples. A UserError of a dataset keeps its message, from worker processes too."""

    tally: Tally | None = None
    """Counts the clips that could not be read."""

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            failed = batch.pop("unreadable", ())
            if self.tally:
                self.tally.add(failed)
            yield batch


def load(examples: Dataset[Example], *, tally: Tally | None = None, **options: Any) -> BatchLoader:
    """Batches of examples; the options are those of `DataLoader`."""
    loader = BatchLoader(_WithErrors(examples), collate_fn=_collate, **options)
    loader.tally = tally
    return loader


class _WithErrors(Dataset[Example | UserError]):
    """Returns UserErrors instead of raising them, because a worker process would wrap them into its traceback."""

    def __init__(self, examples: Dataset[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Example | UserError:
        try:
            return self.examples[index]
        except UserError as error:
            return error


def _collate(examples: list[Example | UserError]) -> dict[str, Any] | UserError:
    for example in examples:
        if isinstance(example, UserError):
            return example
    given = cast("list[Example]", examples)
    failed = [one for example in given for one in example.get("unreadable", ())]
    return {**collate(given), **({"unreadable": failed} if failed else {})}


class VideoDataModule(LightningDataModule):
    """Training and validation clips.

    A module with `trains_on_tokens` gets the tokens of its tokenizer; any other module gets frames. Tokens come from
    the cache, which all processes fill together before training, or from token shards given as the dataset.

    Args:
        train: clips to train on.
        val: clips to validate on, of the same shape.
        clips_per_step: global batch size: clips of a step, over all processes. Gradient accumulation follows from it.
            By default batch_size times processes times trainer.accumulate_grad_batches.
        batch_size: size of a micro-batch: clips that fit on a device at a time. Its clips draw their noise from one
            random stream.
        num_workers: processes that load clips.
        seed: seed of the order of the clips.
        shuffle_window: shuffle the training clips inside windows of this many shards (of 256 clips), such as 8. Each
            shard is then read once per epoch (see `arvid.data.order.WindowOrder`). For object storage, and for sets
            larger than the memory. By default the whole set is shuffled.
        posterior: train on tokens drawn anew at each step from the tokenizer's posterior, as NOVA's released code does.
            By default on the posterior means. Needs a tokenizer with a posterior; validation is on the means.
        max_unreadable: largest share of a set's clips that may become unreadable during training. Other clips replace
            them. Beyond it, training stops.

    Raises UserError for values outside their ranges, and if the clips of the two sets differ in shape.
    """

    def __init__(
        self,
        train: VideoDataset,
        val: VideoDataset,
        *,
        clips_per_step: int | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        shuffle_window: int | None = None,
        posterior: bool = False,
        max_unreadable: float = MAX_UNREADABLE,
    ) -> None:
        super().__init__()
        at_least(1).require(
            "data.",
            batch_size=batch_size,
            clips_per_step=clips_per_step,
            shuffle_window=shuffle_window,
        )
        at_least(0).require("data.", num_workers=num_workers, seed=seed)
        self.train = train
        self.val = val
        self.clips_per_step = clips_per_step
        self.batch_size = batch_size
        self.division = Division(batch_size)
        self.num_workers = num_workers
        self.seed = seed
        self.shuffle_window = shuffle_window
        self.posterior = posterior
        SHARE.require("data.", max_unreadable=max_unreadable)
        self.tallies = [Tally(len(clips), max_unreadable) for clips in (train, val)]
        self.clip_shape = _clip_shape(train)
        if _clip_shape(val) != self.clip_shape:
            raise UserError(
                f"Training clips are {self.clip_shape} (frames, height, width), "
                f"validation clips {_clip_shape(val)}: they must be equal."
            )
        self.num_classes = len(train.classes)
        self.value_names = {name: list(names) for name, names in train.value_names.items()}

    def share_steps(self, trainer: Trainer) -> None:
        """Divide `clips_per_step` among the trainer's processes, and set the trainer to count in steps.

        Raises UserError as `divide` does, and if the trainer is set to accumulate another number of batches.
        """
        if self.clips_per_step is None:
            return
        self.division = divide(self.clips_per_step, self.batch_size, trainer.world_size)
        needed, asked = self.division.accumulate, trainer.accumulate_grad_batches
        if asked not in (1, needed):
            raise UserError(
                f"trainer.accumulate_grad_batches is {asked}, but data.clips_per_step {self.clips_per_step} needs "
                f"{needed} batches of {self.division.batch_size} on each of {trainer.world_size} processes. Remove "
                "trainer.accumulate_grad_batches."
            )
        trainer.accumulate_grad_batches = needed
        if isinstance(trainer.val_check_interval, int):
            trainer.val_check_interval *= needed  # Lightning counts batches

    def setup(self, stage: str) -> None:
        """Fill the token cache: first with all processes, then by machine, in case machines do not share a disk."""
        trainer = self.trainer
        assert trainer is not None
        module = trainer.lightning_module
        _require_captions(module, self.train)
        if not _trains_on_tokens(module):
            return
        everywhere = trainer.global_rank, trainer.world_size
        here = trainer.local_rank, trainer.num_devices
        for share in dict.fromkeys((everywhere, here)):
            device = trainer.strategy.root_device
            self.encode(module, share=share, device=device, verify=False)
            trainer.strategy.barrier()

    def encode(
        self,
        module: Any,
        *,
        out: Path | None = None,
        share: tuple[int, int] = (0, 1),
        device: torch.device | str = "cpu",
        verify: bool = True,
    ) -> dict[Path, int]:
        """Encode the clips with the module's tokenizer, into the cache or into OUT/train and OUT/val.

        `share`, `device` and `verify` are those of `encode_dataset`. Returns folder -> number of missing shards. Sets
        that are token shards already are skipped.
        """
        missing = {}
        for name, dataset in (("train", self.train), ("val", self.val)):
            if not isinstance(dataset, TokenShards):
                key = module.tokenizer_hash
                posterior = self._of_posterior(dataset)
                folder = out / name if out else cache_folder(key, dataset, posterior=posterior)
                left = encode_dataset(
                    module.tokenizer,
                    key,
                    dataset,
                    folder,
                    device=device,
                    share=share,
                    posterior=posterior,
                    verify=verify,
                )
                missing[folder] = len(left)
        return missing

    def _of_posterior(self, dataset: VideoDataset) -> bool:
        return self.posterior and dataset is self.train

    def train_dataloader(self) -> BatchLoader:
        examples = self._examples(self.train)
        trainer = self.trainer
        assert trainer is not None
        sampler = StepSampler(
            len(examples),
            self.division.batch_size,
            seed=self.seed,
            # global_step counts optimiser steps, the sampler counts batches.
            start=trainer.global_step * trainer.accumulate_grad_batches,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            order=self._window_order(examples),
        )
        return load(
            examples,
            tally=self.tallies[0],
            batch_sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # Copies out of pinned memory do not hold up the host.
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )

    def _window_order(self, examples: VideoExamples | TokenExamples) -> WindowOrder | None:
        if self.shuffle_window is None:
            return None
        trainer = self.trainer
        assert trainer is not None
        shards = examples.shards if isinstance(examples, TokenExamples) else None
        own = self.division.batch_size * trainer.accumulate_grad_batches
        return WindowOrder(
            len(examples),
            self.seed,
            clips_per_shard=shards.manifest.clips_per_shard
            if shards is not None
            else CLIPS_PER_SHARD,
            window=self.shuffle_window,
            clips_per_step=own * trainer.world_size,
            prefetch=shards.prefetch if shards is not None else None,
        )

    def val_dataloader(self) -> BatchLoader:
        return load(
            self._examples(self.val),
            tally=self.tallies[1],
            batch_sampler=self.val_sampler(),
            num_workers=self.num_workers,
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Let the model check a batch while it is on the CPU: on a GPU the host would wait for the answer."""
        check = getattr(self.trainer and self.trainer.lightning_module, "check_batch", None)
        if check is not None:
            check(batch)
        return batch

    def val_sampler(self) -> PartSampler:
        """Sampler of the validation batches, with the part of each that this process holds."""
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return PartSampler(
            len(self.val),
            self.batch_size,
            rank=rank,
            world_size=world_size,
        )

    def _examples(self, dataset: VideoDataset) -> VideoExamples | TokenExamples:
        module: Any = self.trainer.lightning_module if self.trainer else None
        if not _trains_on_tokens(module):
            return VideoExamples(dataset)
        posterior = self._of_posterior(dataset)
        if not isinstance(dataset, TokenShards):
            folder = cache_folder(module.tokenizer_hash, dataset, posterior=posterior)
            dataset = TokenShards(str(folder))
        dataset.require_tokenizer(module.tokenizer_hash)
        if posterior:
            dataset.require_posterior()
        text = getattr(getattr(module, "conditioner", None), "text", None)
        return TokenExamples(dataset, None if text is None else text.reader())


def _trains_on_tokens(module: Any) -> bool:
    return getattr(module, "trains_on_tokens", False)


def _require_captions(module: Any, train: VideoDataset) -> None:
    """Raise UserError if captions are a condition but no clip has one: the text would have no effect."""
    conditioner = getattr(module, "conditioner", None)
    if conditioner is not None and conditioner.text is not None and not train.has_captions:
        raise UserError(
            "The caption is a condition (model.text), but no clip of data.train has one. Put the videos into a folder "
            "for each class, name the manifest's column of captions (columns: {caption: ...}), or train without a "
            "caption: --model.init_args.text null."
        )


def _clip_shape(dataset: VideoDataset) -> tuple[int, int, int]:
    """Frames, height and width of a dataset's clips."""
    if isinstance(dataset, TokenShards):
        return dataset.manifest.clip_shape
    frames, height, width = read_clip(dataset, 0)[0].video.shape[:3]
    return frames, height, width
