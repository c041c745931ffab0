"""Token shards: encoded clips in a folder, on a disk or in object storage, without the videos they come from.

What the files are is said in shard_files.py; each is verified before its first clip is read. Folders of object storage
(s3://, gs://, hf://, https://: whatever fsspec knows) are read through copies in the cache, each shard being fetched
when its first clip is asked for.
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

from arvid.cache_dir import cache_dir
from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data.collate import Example
from arvid.data.shard_files import (
    Shard,
    is_url,
    missing_shards,
    naming,
    read_bytes,
    read_manifest,
    shard_name,
)
from arvid.files import atomic_write, sha256_json
from arvid.sealed import verify_tensors

logger = logging.getLogger(__name__)

AT_ONCE = 1 << 26
"""Folders of at most so many bytes are verified when they are opened, in some 0.05 s. Of larger ones a thread verifies
shard by shard meanwhile, and who wants to read one earlier verifies it first."""
_NAMED = 5  # shards in a message about missing ones


class EncodedClip(Clip):
    """A clip without frames."""

    _where: str

    def __init__(self, facts: Mapping[str, Any], *, where: str) -> None:
        label = facts["label"]
        values = {
            "caption": facts["caption"],
            "label": None if label < 0 else label,
            **{
                name: None if math.isnan(facts[name]) else facts[name] for name in ("motion", "fps")
            },
            "attributes": {},
            "_where": where,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the base is frozen

    @property
    def video(self) -> NoReturn:
        raise UserError(
            f"{self._where} holds the tokens of clips, not their frames, which are needed here: "
            "name a dataset of videos instead."
        )


class TokenShards(VideoDataset):
    """Clips as their tokens: what `arvid encode` made of a dataset, for machines where the videos are not.

    As a training or validation set it takes the place of that dataset: same clips, same order, same fingerprint. What
    needs frames (training a tokenizer, scoring) cannot be done with it.

    Args:
        path: folder or URL of the shards. Storage other than disk and http needs its package (s3fs, gcsfs).

    Raises UserError if the folder holds no shards, or some are missing or damaged. Of a URL that is seen only when
    they are asked for.
    """

    def __init__(self, path: str) -> None:
        self.path = str(path).rstrip("/")
        self.manifest = read_manifest(self.path)
        self.classes = self.manifest.classes
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
                "Give the same `arvid encode` again: it makes only those. Or copy them here."
            )
        numbers = range(self.manifest.num_shards)
        if sum(self._shard(n).path.stat().st_size for n in numbers) > AT_ONCE:
            Thread(target=self._verify_ahead, daemon=True).start()
            return
        for number in numbers:
            self._verify(number)

    def _verify_ahead(self) -> None:
        """Verify all shards while other work goes on. Who reads a damaged one gets the error; here it is a warning."""
        for number in range(self.manifest.num_shards):
            try:
                self._verify(number)
            except UserError as error:
                logger.warning("%s", error)

    def _verify(self, number: int) -> None:
        """Raise UserError if a shard is damaged; it is looked at once by all processes that load from this set."""
        if not self._verified[number]:
            self._shard(number).verify()
            self._verified[number] = True

    def __len__(self) -> int:
        return self.manifest.num_clips

    def __getitem__(self, index: int) -> Clip:
        """The clip, of which all is known but its frames: asking for `video` raises UserError."""
        return EncodedClip(self.example(index), where=self.path)

    def fingerprint(self) -> str:
        """That of the dataset whose clips were encoded."""
        return self.manifest.data

    def example(self, index: int) -> Example:
        """Tokens (int64 or float32), caption, label, motion score and fps of a clip: -1 (label) and NaN where
        unknown.

        Shards of a posterior have the key `spread` beside them: standard deviations of the tokens (float32).
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
                f"{tokenizer_hash[:16]} in this configuration. Name that tokenizer, or encode the clips with this one."
            )

    def require_posterior(self) -> None:
        """Raise UserError if the tokens' standard deviations were not stored."""
        if not self.manifest.posterior:
            raise UserError(
                f"{self.path} holds tokens without their standard deviations, which data.posterior asks for: "
                "encode the clips anew with that option, or leave it off."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # open files stay with their process

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            path = self._fetched(shard_name(number))
            self._shards[number] = Shard(path, self.manifest, number)
        return self._shards[number]

    def _fetched(self, name: str) -> Path:
        """Where a file lies: in the folder itself, or in the cache, into which it is copied from object storage."""
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
    """Booleans, at first false, that a process shares with those that it forks (the workers of a data loader)."""
    return np.frombuffer(mmap.mmap(-1, max(num, 1)), dtype=np.bool_)
