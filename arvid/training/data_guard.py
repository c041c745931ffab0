"""The look at the data (see `arvid.data.guard`) when a training begins, and for `arvid data check`."""

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
    """Warns in the log, before the first step, of clips that training should not be on."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tokens are read from the cache, which is filled by then."""
        if trainer.is_global_zero:
            data: VideoDataModule = trainer.datamodule  # type: ignore[attr-defined]
            for findings in look_at_data(pl_module, data, encode=False):
                for warning in findings.warnings:
                    logger.warning("%s", warning)


def look_at_data(module: LightningModule, data: VideoDataModule, *, encode: bool) -> list[Findings]:
    """What a look at training and validation clips shows.

    Args:
        module: a generator's continuous tokens are looked at too.
        data: the clips.
        encode: whether to encode those clips instead of reading them from the cache of tokens.
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
    """How to get at a clip's tokens; None where there are none that have a spread."""
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
        tokens, spread = module.tokenizer.encode_posterior(clip)
        return tokens.cpu(), spread.cpu()
    return module.tokenizer.encode(clip).cpu(), None
