"""Tokens on disk: a dataset is encoded once per tokenizer, and training reads the result.

A cache is a folder named by the hash of tokenizer and data: `tokens.npy` (memory-mapped) and `clips.json` (captions,
labels, motion scores). It is written beside its place and moved there whole, so it is complete or absent.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from arvid.contracts import Clip, VideoDataset, VideoTokenizer
from arvid.data.cache_dir import cache_dir
from arvid.data.collate import Example, normalise
from arvid.files import sha256_json

ENCODE_BATCH = 16


class TokenCache(Dataset[Example]):
    """The encoded clips of a cache folder; `build` makes the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self.clips: list[dict[str, Any]] = json.loads((folder / "clips.json").read_text())

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Example:
        tokens = torch.from_numpy(np.array(self.tokens[index]))
        if not tokens.is_floating_point():
            tokens = tokens.long()
        return {"tokens": tokens, **self.clips[index]}


def cache_folder(tokenizer_hash: str, dataset: VideoDataset) -> Path:
    """Where the tokens of a dataset lie."""
    key = sha256_json([tokenizer_hash, dataset.fingerprint()])[:24]
    return cache_dir() / "tokens" / key


@torch.no_grad()
def encode_dataset(
    tokenizer: VideoTokenizer, tokenizer_hash: str, dataset: VideoDataset
) -> TokenCache:
    """The dataset's tokens: read from the cache, or encoded (with a progress bar) and stored there."""
    folder = cache_folder(tokenizer_hash, dataset)
    if not folder.is_dir():
        temporary = folder.with_name(f".{folder.name}-{np.random.default_rng().integers(2**32):x}")
        temporary.mkdir(parents=True)
        try:
            _encode_into(temporary, tokenizer, dataset)
            _move(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return TokenCache(folder)


def _encode_into(folder: Path, tokenizer: VideoTokenizer, dataset: VideoDataset) -> None:
    clips: list[dict[str, Any]] = []
    array: np.memmap[Any, Any] | None = None
    batches = range(0, len(dataset), ENCODE_BATCH)
    for start in tqdm(batches, desc="encoding clips", unit="batch", leave=False):
        batch = [dataset[i] for i in range(start, min(start + ENCODE_BATCH, len(dataset)))]
        tokens = _encode(tokenizer, batch)
        if array is None:
            shape = (len(dataset), *tokens.shape[1:])
            array = np.lib.format.open_memmap(
                folder / "tokens.npy", mode="w+", dtype=tokens.dtype, shape=shape
            )
        array[start : start + len(batch)] = tokens
        clips += [describe_clip(clip) for clip in batch]
    assert array is not None, "a VideoDataset is never empty"
    array.flush()
    (folder / "clips.json").write_text(json.dumps(clips))


def _encode(tokenizer: VideoTokenizer, clips: list[Clip]) -> np.ndarray:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    video = torch.stack([normalise(clip.video) for clip in clips])
    tokens = tokenizer.to(device).encode(video.to(device)).cpu().numpy()
    return tokens.astype(np.int32) if tokenizer.spec.type == "discrete" else tokens


def describe_clip(clip: Clip) -> dict[str, Any]:
    """What a batch says of a clip beside its frames: -1 and NaN where label and motion are unknown."""
    return {
        "caption": clip.caption,
        "label": -1 if clip.label is None else clip.label,
        "motion": math.nan if clip.motion is None else clip.motion,
    }


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster, with the same tokens
            raise
