"""Atomic writes of files, hashes, and the cache folder.

An atomic write goes to a temporary file in the same folder first. All of arvid's files are written this way.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_NAME_BYTES = 255
"""Maximum length of a file name on all common file systems."""


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix; move it to `path` if the block ends without an error.

    After an error, such as OSError for a full disk, the temporary file is removed and `path` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Only part of the stem: the temporary name must not exceed the limit if the name itself just fits.
    prefix = f".{path.stem[:40]}-"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def fitting_name(stem: str, suffix: str) -> str:
    """A file name of at most MAX_NAME_BYTES. The end of a longer stem is replaced by a hash."""
    name = f"{stem}{suffix}"
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    end = f"~{hashlib.sha256(stem.encode()).hexdigest()[:12]}{suffix}"
    kept = stem.encode()[: MAX_NAME_BYTES - len(end.encode())].decode(errors="ignore")
    return f"{kept}{end}"


def can_be_name(text: str) -> bool:
    """Whether a text can be the name of a file. Its length is not checked."""
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can contain
        return False
    return bool(text) and "/" not in text and "\0" not in text


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused (ValueError)."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def checksum_file(path: str | Path, algorithm: str) -> str:
    """Hex digest of a file's content, by an algorithm of hashlib or by 'git-blob', as `git hash-object` prints it."""

    def git_blob() -> Any:
        header = f"blob {os.path.getsize(path)}\0"
        return hashlib.sha1(header.encode(), usedforsecurity=False)

    with open(path, "rb") as file:
        return hashlib.file_digest(
            file, git_blob if algorithm == "git-blob" else algorithm
        ).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's content."""
    return checksum_file(path, "sha256")


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def cache_dir() -> Path:
    """The folder of results that can be computed again: ARVID_CACHE, by default `~/.cache/arvid`.

    It may not exist yet. Deleting it is always safe.
    """
    return Path(os.environ.get("ARVID_CACHE") or "~/.cache/arvid").expanduser()
