"""Token shards as a dataset: encoded clips in a folder on disk or in object storage, without their videos.

shard_files.py describes the files. Opening a folder reads its manifest and lists its files. A shard is verified before
its first clip is read. Shards in object storage (s3://, gs://, hf://, https://, and all else that fsspec reads) are
copied into the cache when they are first needed.
"""

from __future__ import annotations

import logging
import math
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

import numpy as np

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data._shard_copies import Prefetcher, ShardCopies
from arvid.data.collate import OTHERS, Example
from arvid.data.shard import Shard
from arvid.data.shard_files import is_url, missing_shards, read_manifest, shard_name
from arvid.ranges import above

logger = logging.getLogger(__name__)

AT_ONCE = 1 << 26
"""Folders up to this size, in bytes, are verified when they are opened, in some 0.05 s. A thread verifies the shards of
larger folders. If a reader needs a shard earlier, it verifies the shard itself."""
AHEAD = 1 << 36
"""Largest folder, in bytes, that the thread verifies: this thread, one in each process, reads the whole folder. Shards
of larger folders are verified at their first use."""
MAX_OPEN = 128
"""Shards that a process keeps open. Opening one again takes some 50 µs."""
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
        """Raises UserError: the frames are not stored."""
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
        cache_gib: for a URL: limit of the size of its copies in the cache (`ARVID_CACHE`), in GiB. Above it, the least
            recently opened copies are deleted. By default all are kept.

    Raises UserError if the folder holds no shards, or some are missing or damaged. At a URL, and in a large folder,
    damage is found when a shard is read.
    """

    def __init__(self, path: str, *, cache_gib: float | None = None) -> None:
        above(0).require("", cache_gib=cache_gib)
        self.path = str(path).rstrip("/")
        self.manifest = read_manifest(self.path)
        self.classes = self.manifest.classes
        self.value_names = self.manifest.value_names
        self._shards: dict[int, Shard] = {}  # the most recently used shard is the last one
        self._verified = _flags(self.manifest.num_shards)
        self._prefetcher: Prefetcher | None = None
        self._copies: ShardCopies | None = None
        if is_url(self.path):
            limit = None if cache_gib is None else cache_gib * 2**30
            self._copies = ShardCopies(self.path, self.manifest, limit)
        else:
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
        # Shards differ in size only by their captions, so the first one gives the total. To ask for the size of each is
        # slow on a network.
        total = (Path(self.path) / shard_name(0)).stat().st_size * self.manifest.num_shards
        if total <= AT_ONCE:
            for number in range(self.manifest.num_shards):
                self._verify(number)
        elif total <= AHEAD:
            Thread(target=self._verify_ahead, daemon=True).start()

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
            self._opened(number).verify()  # not `_shard`: a thread verifies too
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

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Copy shards of a URL into the cache in the background. A failure is reported when the shard is read."""
        if self._copies is None:
            return
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(self._copies)
        for number in numbers:
            self._prefetcher.add(number)

    def __getstate__(self) -> dict[str, Any]:
        # Open files and threads stay with their process.
        return {**self.__dict__, "_shards": {}, "_prefetcher": None}

    def _shard(self, number: int) -> Shard:
        shard = self._shards.pop(number, None) or self._opened(number)
        self._shards[number] = shard
        if len(self._shards) > MAX_OPEN:
            del self._shards[next(iter(self._shards))]
        return shard

    def _opened(self, number: int) -> Shard:
        if self._copies is None:
            path = Path(self.path) / shard_name(number)
            try:
                return Shard(path, self.manifest, number)
            except FileNotFoundError as error:
                raise UserError(
                    f"{path} is missing. Run the same `arvid encode` again, or copy it here."
                ) from error
        while True:
            try:
                return Shard(self._copies.fetch(number), self.manifest, number)
            except FileNotFoundError:  # another process deleted the copy just now, to make space
                continue


def _flags(num: int) -> np.ndarray:
    """Booleans, all False, in memory that forked processes share (the workers of a data loader)."""
    # An anonymous map is shared with forked processes, and zero at first. Its length must not be 0.
    return np.frombuffer(mmap.mmap(-1, max(num, 1)), dtype=np.bool_)
