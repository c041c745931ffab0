"""Token shards as a dataset: encoded clips in a folder on disk or in object storage, without their videos.

shard_files.py describes the files. Each is verified before its first clip is read. Shards in object storage (s3://,
gs://, hf://, https://, and all else that fsspec reads) are copied into the cache when their first clip is read.
"""

from __future__ import annotations

import logging
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

import numpy as np

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data.collate import OTHERS, Example
from arvid.data.shard_files import (
    Shard,
    is_url,
    missing_shards,
    naming,
    read_bytes,
    read_manifest,
    shard_name,
)
from arvid.files import atomic_write, cache_dir, sha256_json
from arvid.sealed import verify_tensors

logger = logging.getLogger(__name__)

AT_ONCE = 1 << 26
"""Largest folder, in bytes, that is verified when it is opened, in some 0.05 s. A larger folder is verified shard by
shard in a thread; a reader that is ahead of the thread verifies its shard itself."""
_NAMED = 5  # shards in a message about missing ones


class EncodedClip(Clip):
    """A clip without frames."""

    _where: str

    def __init__(self, facts: Mapping[str, Any], *, where: str) -> None:
        given = {name: value for name, value in facts.items() if name not in OTHERS}
        label, motion, fps = (given.pop(name) for name in ("label", "motion", "fps"))
        values = {
            "caption": facts["caption"],
            "label": None if label < 0 else int(label),
            "motion": None if math.isnan(motion) else float(motion),
            "fps": None if math.isnan(fps) else float(fps),
            "attributes": {},
            "conditions": given,
            "_where": where,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the base class is a frozen dataclass

    @property
    def video(self) -> NoReturn:
        raise UserError(
            f"{self._where} holds the tokens of clips, not their frames, but frames are needed here. "
            "Use a dataset of videos."
        )


class TokenShards(VideoDataset):
    """Clips as tokens, encoded by `arvid encode`, for machines without the videos.

    It replaces the encoded dataset in training and validation: same clips, same order, same fingerprint. It has no
    frames, so it cannot train a tokenizer or serve as real clips for scores.

    Args:
        path: folder or URL of the shards. Storage other than disk and http needs its package (s3fs, gcsfs).

    Raises UserError if the folder holds no shards, or some are missing or damaged. At a URL this is found when a shard
    is read.
    """

    def __init__(self, path: str) -> None:
        self.path = str(path).rstrip("/")
        self.manifest = read_manifest(self.path)
        self.classes = self.manifest.classes
        self.value_names = self.manifest.value_names
        self._shards: dict[int, Shard] = {}
        self._verified = _flags(self.manifest.num_shards)
        if not is_url(self.path):
            self._require_all()

    def _require_all(self) -> None:
        """Raise UserError now if a shard is missing or damaged, instead of hours later."""
        if missing := missing_shards(Path(self.path), self.manifest):
            names = ", ".join(map(shard_name, missing[:_NAMED]))
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise UserError(
                f"{self.path}: {len(missing)} of {self.manifest.num_shards} shards are missing ({names}{more}). "
                "Run the same `arvid encode` again, which makes only those, or copy them here."
            )
        numbers = range(self.manifest.num_shards)
        if sum(self._shard(n).path.stat().st_size for n in numbers) > AT_ONCE:
            Thread(target=self._verify_ahead, daemon=True).start()
            return
        for number in numbers:
            self._verify(number)

    def _verify_ahead(self) -> None:
        """Verify all shards in the background. A damaged one is a warning here, and an error when it is read."""
        for number in range(self.manifest.num_shards):
            try:
                self._verify(number)
            except UserError as error:
                logger.warning("%s", error)

    def _verify(self, number: int) -> None:
        """Raise UserError if a shard is damaged. All processes that load from this set verify it once in total."""
        if not self._verified[number]:
            self._shard(number).verify()
            self._verified[number] = True

    def __len__(self) -> int:
        return self.manifest.num_clips

    def __getitem__(self, index: int) -> Clip:
        """The clip without frames: its `video` raises UserError."""
        return EncodedClip(self.example(index), where=self.path)

    def fingerprint(self) -> str:
        """Fingerprint of the encoded dataset."""
        return self.manifest.data

    def example(self, index: int) -> Example:
        """Tokens (int64 or float32), caption and values of the conditions of a clip, as `describe_clip` gives them.

        Shards of a posterior add the key `spread`: standard deviations of the tokens (float32).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        number, row = divmod(index, self.manifest.clips_per_shard)
        self._verify(number)
        return self._shard(number).example(row)

    def require_tokenizer(self, tokenizer_hash: str) -> None:
        """Raise UserError if the tokens are another tokenizer's."""
        if self.manifest.tokenizer != tokenizer_hash:
            raise UserError(
                f"{self.path} holds tokens of another tokenizer: its hash is {self.manifest.tokenizer[:16]} there and "
                f"{tokenizer_hash[:16]} in this configuration. Use that tokenizer, or encode the clips with this one."
            )

    def require_posterior(self) -> None:
        """Raise UserError if the tokens' standard deviations were not stored."""
        if not self.manifest.posterior:
            raise UserError(
                f"{self.path} holds tokens without their standard deviations, which data.posterior needs. "
                "Encode the clips again with that option, or turn it off."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # open files stay with their process

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            path = self._fetched(shard_name(number))
            self._shards[number] = Shard(path, self.manifest, number)
        return self._shards[number]

    def _fetched(self, name: str) -> Path:
        """Path of a file: in the folder itself, or in the cache, after a copy from object storage."""
        if not is_url(self.path):
            return Path(self.path) / name
        key = sha256_json([self.path, self.manifest.stored()])[:24]
        target = cache_dir() / "shards" / key / name
        if not target.is_file():
            content = read_bytes(f"{self.path}/{name}")
            with naming(f"{self.path}/{name}"):
                verify_tensors(content, required=self.manifest.sealed)
            with atomic_write(target) as temporary:
                temporary.write_bytes(content)
        return target


def _flags(num: int) -> np.ndarray:
    """Booleans, all False, in memory that forked processes share (the workers of a data loader)."""
    # An anonymous map is shared with forked processes, and zero at first. Its length must not be 0.
    return np.frombuffer(mmap.mmap(-1, max(num, 1)), dtype=np.bool_)
