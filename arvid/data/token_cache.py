"""The token cache: a dataset is encoded once per tokenizer, and every training on it reads the result.

A cached dataset is a folder of token shards, named by the hash of tokenizer and data.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from tqdm import tqdm

from arvid.cache_dir import cache_dir
from arvid.contracts import Clip, UserError, VideoDataset, VideoTokenizer
from arvid.data.collate import normalise
from arvid.data.loading import load_batches
from arvid.data.shard_files import (
    UNSEALED,
    Manifest,
    begin,
    first_impossible,
    impossible,
    missing_shards,
    shard_name,
    verify_shard,
    write_shard,
)
from arvid.data.stand_ins import Tally, read_clip
from arvid.files import sha256_json
from arvid.nn.finite import require_finite_weights

CLIPS_PER_SHARD = 256
"""What an interruption may cost; some hundred kilobytes of ids, or some ten megabytes of continuous tokens."""
BATCH_PIXELS = 1 << 20
"""Clips are encoded in batches of about so many pixels, counted over all frames."""
MAX_BATCH = 64


def cache_folder(tokenizer_hash: str, dataset: VideoDataset, *, posterior: bool = False) -> Path:
    """Where the tokens of a dataset lie, with their standard deviations or without."""
    # checksums changed the format, not the tokens: folders that were filled without them are found
    what = [UNSEALED, tokenizer_hash, dataset.fingerprint(), *(["posterior"] if posterior else [])]
    key = sha256_json(what)[:24]
    return cache_dir() / "tokens" / key


def encode_dataset(
    tokenizer: VideoTokenizer,
    tokenizer_hash: str,
    dataset: VideoDataset,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    share: tuple[int, int] = (0, 1),
    posterior: bool = False,
    verify: bool = False,
) -> list[int]:
    """Encode a dataset into a folder of token shards; those that are there, or that others make, are not made again.

    Other clips stand in for those whose files cannot be read (see `stand_ins`).

    Args:
        device: where the tokenizer is moved to.
        share: which part this process does, counted from 0, and how many parts there are.
        posterior: store the standard deviations of the tokens too.
        verify: look for damage in this process's part of the shards that are there. Reading them does so anyway.

    Returns the numbers of the shards that are still missing: other processes' parts.
    Raises UserError if the folder holds other tokens or a damaged shard, if the tokenizer's weights or tokens are not
    finite or its ids outside its vocabulary, and as the dataset and the tokenizer do.
    """
    frames, height, width = read_clip(dataset, 0)[0].video.shape[:3]
    tally = Tally(len(dataset))
    manifest = Manifest(
        tokenizer=tokenizer_hash,
        data=dataset.fingerprint(),
        spec=tokenizer.spec,
        clip_shape=(frames, height, width),
        classes=tuple(dataset.classes),
        num_clips=len(dataset),
        clips_per_shard=CLIPS_PER_SHARD,
        posterior=posterior,
    )
    manifest = begin(folder, manifest)
    part, num_parts = share
    missing = missing_shards(folder, manifest)
    mine = [n for n in missing if n % num_parts == part]
    if verify:
        for shard in range(part, manifest.num_shards, num_parts):
            if shard not in mine:
                verify_shard(folder, manifest, shard)
    if mine:
        require_finite_weights(tokenizer, f"The tokenizer {type(tokenizer).__name__}")
    random.Random().shuffle(mine)  # runs that are started side by side fill one folder together
    num_clips = sum(len(manifest.clips_of(shard)) for shard in mine)
    hidden = getattr(rank_zero_only, "rank", 0) > 0  # one bar for each terminal
    bar = tqdm(desc="encoding", total=num_clips, unit="clip", leave=False, disable=hidden)
    with bar:
        for shard in mine:
            if (folder / shard_name(shard)).is_file():
                bar.update(len(manifest.clips_of(shard)))
                continue
            batches = _batches(manifest, shard)
            encoded = _encode(tokenizer.to(device), dataset, batches, device, posterior, bar, tally)
            write_shard(folder, manifest, shard, *encoded)
    return missing_shards(folder, manifest)


def _batches(manifest: Manifest, shard: int) -> list[list[int]]:
    """A shard's clips in the batches that they are encoded in, always the same: so its tokens are, to the last bit."""
    size = max(1, min(BATCH_PIXELS // math.prod(manifest.clip_shape), MAX_BATCH))
    clips = list(manifest.clips_of(shard))
    return [clips[i : i + size] for i in range(0, len(clips), size)]


@torch.no_grad()
def _encode(
    tokenizer: VideoTokenizer,
    dataset: VideoDataset,
    batches: list[list[int]],
    device: torch.device | str,
    posterior: bool,
    bar: tqdm[NoReturn],
    tally: Tally,
) -> tuple[Tensor, Tensor | None, list[dict[str, Any]]]:
    """Tokens of the clips, their standard deviations if these are asked for, and what else is known of the clips."""
    tokens, spread, facts = [], [], []
    loaded = load_batches(dataset, batches, tally=tally)
    for indices, clips in zip(batches, loaded, strict=True):
        video = torch.stack([normalise(clip.video) for clip in clips]).to(device)
        if posterior:
            mean, deviation = tokenizer.encode_posterior(video)
            tokens.append(mean.cpu())
            spread.append(deviation.cpu())
            _require_possible(tokenizer, spread[-1], indices, clips)
        else:
            tokens.append(tokenizer.encode(video).cpu())
        _require_possible(tokenizer, tokens[-1], indices, clips)
        facts += [describe_clip(clip) for clip in clips]
        bar.update(len(clips))
    return torch.cat(tokens), torch.cat(spread) if posterior else None, facts


def _require_possible(
    tokenizer: VideoTokenizer, tokens: Tensor, indices: list[int], clips: list[Clip]
) -> None:
    """Raise UserError for tokens, or standard deviations of them, that are not finite or outside the vocabulary."""
    row = first_impossible(tokens.numpy(), tokenizer.spec)
    if row is not None:
        name = f" ({clips[row].name})" if clips[row].name else ""
        raise UserError(
            f"The tokenizer {type(tokenizer).__name__} gives {impossible(tokenizer.spec)} for clip "
            f"{indices[row]}{name}, so they are not stored. Look at its training, or leave out the clip."
        )


def describe_clip(clip: Clip) -> dict[str, Any]:
    """What a batch says of a clip beside its frames: -1 (label) and NaN (motion, fps) where unknown."""
    return {
        "caption": clip.caption,
        "label": -1 if clip.label is None else clip.label,
        "motion": math.nan if clip.motion is None else clip.motion,
        "fps": math.nan if clip.fps is None else clip.fps,
    }
