"""The token cache: a dataset is encoded once per tokenizer, and all trainings read the result.

A cached dataset is a folder of token shards, named by the hash of tokenizer and dataset.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from arvid.contracts import Clip, UserError, VideoDataset, VideoTokenizer
from arvid.data.collate import normalise
from arvid.data.loading import load_batches
from arvid.data.shard import verify_shard
from arvid.data.shard_files import (
    UNSEALED,
    Manifest,
    begin,
    describe_invalid,
    first_invalid,
    missing_shards,
    shard_name,
    write_shard,
)
from arvid.data.stand_ins import Tally, read_clip
from arvid.files import cache_dir, sha256_json
from arvid.nn.conditions import of_clip
from arvid.nn.finite import require_finite_weights
from arvid.progress import Bar

CLIPS_PER_SHARD = 256
"""An interruption loses at most this many clips. A shard has some 100 kB of ids, or 10 MB of continuous tokens."""
BATCH_PIXELS = 1 << 20
"""Pixels per encoded batch, over all frames."""
MAX_BATCH = 64


def cache_folder(tokenizer_hash: str, dataset: VideoDataset, *, posterior: bool = False) -> Path:
    """Folder of a dataset's tokens, with or without standard deviations."""
    # The older format in the key: checksums did not change the tokens, so older folders stay in use.
    parts = [UNSEALED, tokenizer_hash, dataset.fingerprint(), *(["posterior"] if posterior else [])]
    key = sha256_json(parts)[:24]
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
    """Encode a dataset into a folder of token shards. Existing shards are kept.

    Unreadable clips are replaced by others (see `stand_ins`).

    Args:
        tokenizer: encodes the clips.
        tokenizer_hash: its hash, for the manifest.
        dataset: the clips.
        folder: folder of the shards.
        device: device that the tokenizer is moved to.
        share: index of this process's part, and the number of parts.
        posterior: also store the standard deviations of the tokens.
        verify: check the existing shards of this part for damage now. Otherwise they are checked when they are read.

    Returns the numbers of the shards that are still missing, which other processes make.
    Raises UserError if the folder holds other tokens or a damaged shard, if the tokenizer's weights or tokens are not
    finite or its ids outside its vocabulary, and as the dataset and the tokenizer do.
    """
    tally = Tally(len(dataset))
    manifest = begin(folder, _manifest(tokenizer, tokenizer_hash, dataset, posterior=posterior))
    part, num_parts = share
    missing = missing_shards(folder, manifest)
    mine = [n for n in missing if n % num_parts == part]
    if verify:
        for shard in range(part, manifest.num_shards, num_parts):
            if shard not in mine:
                verify_shard(folder, manifest, shard)
    if mine:
        require_finite_weights(tokenizer, f"The tokenizer {type(tokenizer).__name__}")
    # A random order, so that independent runs that fill one folder rarely make the same shard.
    random.Random().shuffle(mine)
    num_clips = sum(len(manifest.clips_of(shard)) for shard in mine)
    hidden = getattr(rank_zero_only, "rank", 0) > 0  # one bar per terminal
    with Bar(work="encoding clips", total=num_clips, hidden=hidden) as bar:
        for shard in mine:
            if (folder / shard_name(shard)).is_file():  # made by another run meanwhile
                bar.update(len(manifest.clips_of(shard)))
                continue
            batches = _batches(manifest, shard)
            encoded = _encode(tokenizer.to(device), dataset, batches, device, posterior, bar, tally)
            write_shard(folder, manifest, shard, *encoded)
    return missing_shards(folder, manifest)


def _manifest(
    tokenizer: VideoTokenizer, tokenizer_hash: str, dataset: VideoDataset, *, posterior: bool
) -> Manifest:
    frames, height, width = read_clip(dataset, 0)[0].video.shape[:3]
    return Manifest(
        tokenizer=tokenizer_hash,
        data=dataset.fingerprint(),
        spec=tokenizer.spec,
        clip_shape=(frames, height, width),
        classes=tuple(dataset.classes),
        value_names=dict(dataset.value_names),
        num_clips=len(dataset),
        clips_per_shard=CLIPS_PER_SHARD,
        posterior=posterior,
    )


def _batches(manifest: Manifest, shard: int) -> list[list[int]]:
    """Batches of a shard's clips. They are always the same, so the tokens are equal to the last bit."""
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
    bar: Bar,
    tally: Tally,
) -> tuple[Tensor, Tensor | None, list[dict[str, Any]]]:
    """Tokens of the clips, their standard deviations if `posterior`, and the facts about each clip."""
    tokens, stds, facts = [], [], []
    loaded = load_batches(dataset, batches, tally=tally)
    for indices, clips in zip(batches, loaded, strict=True):
        video = torch.stack([normalise(clip.video) for clip in clips]).to(device)
        if posterior:
            mean, std = tokenizer.encode_posterior(video)
            tokens.append(mean.cpu())
            stds.append(std.cpu())
            _require_valid(tokenizer, stds[-1], indices, clips)
        else:
            tokens.append(tokenizer.encode(video).cpu())
        _require_valid(tokenizer, tokens[-1], indices, clips)
        facts += [describe_clip(clip) for clip in clips]
        bar.update(len(clips))
    return torch.cat(tokens), torch.cat(stds) if posterior else None, facts


def _require_valid(
    tokenizer: VideoTokenizer, tokens: Tensor, indices: list[int], clips: list[Clip]
) -> None:
    """Raise UserError for tokens (or their standard deviations) that are not finite or outside the vocabulary."""
    row = first_invalid(tokens.numpy(), tokenizer.spec)
    if row is not None:
        name = f" ({clips[row].name})" if clips[row].name else ""
        raise UserError(
            f"The tokenizer {type(tokenizer).__name__} gives {describe_invalid(tokenizer.spec)} for clip "
            f"{indices[row]}{name}, so they are not stored. Check its training, or leave out the clip."
        )


def describe_clip(clip: Clip) -> dict[str, Any]:
    """Caption of a clip, and the values of its conditions by name."""
    return {"caption": clip.caption, **of_clip(clip)}
