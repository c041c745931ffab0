"""A cache on disk for many small values: one append-only file of JSON lines.

Several processes (ranks, data workers) may append at once. Each line is written by one call and ends with its checksum.
A damaged line is skipped, and its value is computed again. Lines without a checksum are from older versions, and count.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from arvid.files import sha256_json

logger = logging.getLogger(__name__)


class Ledger:
    """Key -> value, both any JSON value. If the folder cannot be written, values are kept in memory only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._facts = _read_lines(path)
        self._writable = True

    def get(self, key: Any) -> Any:
        """The value of a key, or None."""
        return self._facts.get(sha256_json(key))

    def add(self, key: Any, value: Any) -> None:
        """Store a value in memory and on disk."""
        digest = sha256_json(key)
        self._facts[digest] = value
        if self._writable:
            self._append(json.dumps([digest, value, _checksum(digest, value)]) + "\n")

    def _append(self, line: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            self._writable = False
            logger.warning(
                "%s cannot be written (%s), so its values are computed again next time. "
                "Set ARVID_CACHE to a writable folder.",
                self.path,
                error.strerror,
            )


def _read_lines(path: Path) -> dict[str, Any]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    facts = {}
    for line in lines:
        try:
            digest, value, *checksum = json.loads(line)
            if checksum in ([], [_checksum(digest, value)]):
                facts[str(digest)] = value
        except (ValueError, TypeError):
            continue  # cut off by a crash or a full disk
    return facts


def _checksum(digest: str, value: Any) -> str:
    return sha256_json([digest, value])[:16]
