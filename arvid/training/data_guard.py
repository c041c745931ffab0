"""Checks of the data (see `arvid.data.guard`) at the start of training and in `arvid data check`."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from arvid.contracts import VideoDataset
from arvid.data.collate import normalise
from arvid.data.datamodule import VideoDataModule
from arvid.data.guard import Findings, Tokens, look_at
from arvid.data.stand_ins import read_clip
from arvid.data.token_cache import cache_folder
from arvid.data.token_shards import TokenShards
from arvid.training.generator_module import GeneratorModule

logger = logging.getLogger(__name__)


class DataGuard(Callback):
    """Logs a warning, before the first step, if the clips are unfit for training."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the clips. Tokens are read from the cache, which is already filled."""
        if trainer.is_global_zero:
            data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
            for findings in look_at_data(pl_module, data, encode=False):
                for warning in findings.warnings:
                    logger.warning("%s", warning)


def look_at_data(module: LightningModule, data: VideoDataModule, *, encode: bool) -> list[Findings]:
    """Findings about training and validation clips.

    Args:
        module: if it is a generator of continuous tokens, the tokens are checked too.
        data: the clips.
        encode: encode the clips instead of reading their tokens from the cache.
    """
    return [
        look_at(
            name,
            dataset,
            data.clip_shape,
            _tokens(module, data, dataset, encode=encode),
            frames=not isinstance(dataset, TokenShards),
        )
        for name, dataset in (("data.train", data.train), ("data.val", data.val))
    ]


def _tokens(
    module: LightningModule, data: VideoDataModule, dataset: VideoDataset, *, encode: bool
) -> Tokens | None:
    """A function that returns a clip's tokens; None for models without continuous tokens."""
    if not isinstance(module, GeneratorModule) or module.tokenizer.spec.type == "discrete":
        return None
    posterior = data.posterior and dataset is data.train
    if isinstance(dataset, TokenShards):
        shards = dataset
    elif encode:
        return lambda index: _encoded(module, read_clip(dataset, index)[0].video, posterior)
    else:
        folder = cache_folder(module.tokenizer_hash, dataset, posterior=posterior)
        shards = TokenShards(str(folder))
    return lambda index: _stored(shards.example(index))


def _stored(example: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    return example["tokens"], example.get("spread")


@torch.no_grad()
def _encoded(module: GeneratorModule, video: Any, posterior: bool) -> tuple[Tensor, Tensor | None]:
    clip = normalise(video)[None].to(module.device)
    if posterior:
        means, std = module.tokenizer.encode_posterior(clip)
        return means.cpu(), std.cpu()
    return module.tokenizer.encode(clip).cpu(), None
