"""Local copies of the shards of a URL, in the cache folder. The processes of a machine share them.

    CACHE/shards/<key>/00000.safetensors    a copied shard; the key is a hash of the URL and the manifest
    CACHE/shards/<key>/.lock-0              a lock; shard i uses number i % NUM_LOCKS

One process copies a shard while the others that need it wait. Deleting copies is always safe.
"""

from __future__ import annotations

import os
import time
import weakref
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from filelock import FileLock

from arvid.data.shard_files import Manifest, naming, read_bytes, shard_name
from arvid.errors import UserError
from arvid.files import atomic_write, cache_dir, sha256_json
from arvid.sealed import verify_tensors

NUM_LOCKS = 64
PREFETCHES = 4
"""Number of shards that are copied in the background at the same time."""
STALE = 3600.0
"""Age, in seconds, from which a hidden file counts as left by a killed process. Writing a copy takes much less."""


class ShardCopies:
    """The copies of one folder.

    Args:
        url: URL of the folder.
        manifest: its manifest.
        max_bytes: limit of their size. Above it, the least recently opened copies are deleted. None: keep all.
    """

    def __init__(self, url: str, manifest: Manifest, max_bytes: float | None) -> None:
        self.url = url
        self.manifest = manifest
        self.max_bytes = max_bytes
        self.key = sha256_json([url, manifest.stored()])[:24]

    def fetch(self, number: int) -> Path:
        """Path of the copy of a shard. A missing copy is made.

        Raises UserError if the shard cannot be read, or the cache cannot be written.
        """
        folder = cache_dir() / "shards" / self.key
        target = folder / shard_name(number)
        try:
            if not target.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / f".lock-{number % NUM_LOCKS}"):
                    if not target.is_file():
                        self._copy(target)
            elif self.max_bytes is not None:
                with suppress(PermissionError):  # a copy that another user made
                    os.utime(target)
        except FileNotFoundError:  # another process deleted it just now
            return self.fetch(number)
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            raise UserError(
                f"{self.url} cannot be copied into {folder}: {error}. Set ARVID_CACHE to another folder."
            ) from error
        return target

    def _copy(self, target: Path) -> None:
        source = f"{self.url}/{target.name}"
        content = read_bytes(source)
        with naming(source):
            verify_tensors(content, required=self.manifest.sealed)
        with atomic_write(target) as temporary:
            temporary.write_bytes(content)
        if self.max_bytes is not None:
            self._evict(target)

    def _evict(self, newest: Path) -> None:
        """Delete the least recently opened copies until the others fit, but never `newest`.

        Unfinished copies (hidden files) count too. Those of killed processes are deleted.
        """
        found: list[tuple[float, int, Path]] = []
        total = 0
        for entry in os.scandir(newest.parent):
            path = Path(entry.path)
            if path.suffix != newest.suffix:
                continue
            try:
                state = entry.stat()
            except FileNotFoundError:
                continue
            if not entry.name.startswith("."):
                found.append((state.st_mtime, state.st_size, path))
            elif time.time() - state.st_mtime > STALE:
                path.unlink(missing_ok=True)
                continue
            total += state.st_size
        for _, size, path in sorted(found):
            if total <= (self.max_bytes or 0):
                return
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size


class Prefetcher:
    """Copies shards in the background, until it is deleted. A failure is reported when the shard is read.

    Its threads are daemons. Those of a ThreadPoolExecutor would delay the end of the process until the queue is empty.
    """

    def __init__(self, copies: ShardCopies) -> None:
        self._numbers: SimpleQueue[int | None] = SimpleQueue()
        weakref.finalize(self, _end, self._numbers)
        for _ in range(PREFETCHES):
            Thread(target=_copy, args=(copies, self._numbers), daemon=True).start()

    def add(self, number: int) -> None:
        """Put a shard at the end of the queue."""
        self._numbers.put(number)


def _copy(copies: ShardCopies, numbers: SimpleQueue[int | None]) -> None:
    """Copy shards until None comes. With a reference to the Prefetcher, the thread would keep it alive."""
    while (number := numbers.get()) is not None:
        with suppress(UserError):
            copies.fetch(number)


def _end(numbers: SimpleQueue[int | None]) -> None:
    """Let all threads finish the copies in progress, then end."""
    with suppress(Empty):
        while True:
            numbers.get_nowait()
    for _ in range(PREFETCHES):
        numbers.put(None)
