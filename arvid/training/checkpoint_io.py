"""Checkpoint files with a checksum: whole or absent, and refused when a single bit of them has changed.

A checkpoint of torch is a zip archive. Its seal is the archive's comment, `arvid sha256 <64 hexadecimal digits>`: the
SHA-256 of all bytes before these digits. torch.load does not read the comment, so a sealed file is an ordinary one. The
checkpoint also holds the key "sealed", so that a file that lost its seal is known to be damaged. Files without a seal,
which arvid wrote before it had one, are checked against the CRC-32 of the archive's members.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from arvid import importing
from arvid.errors import UserError
from arvid.files import atomic_write

SEALED = "sealed"
"""Key of a checkpoint whose file has a seal."""
_MARK = b"arvid sha256 "
_DIGITS = 64
_LENGTH = len(_MARK) + _DIGITS
_ADVICE = "Take another copy of it, or train again."


class SealedCheckpointIO(TorchCheckpointIO):
    """Lightning's way to write and read checkpoints, atomically and with a seal."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        with verifying(path):
            return super().load_checkpoint(path, map_location, weights_only=True)


def save_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint with its seal, whole or not at all."""
    with atomic_write(path) as temporary:
        torch.save({**checkpoint, SEALED: True}, temporary)
        _seal(temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of arvid's, tensors mapped from disk; nothing in the file is executed.

    The content is not verified: read inside a block of `verifying`. Raises UserError naming a file that cannot be read.
    """
    checkpoint = importing.read_checkpoint(path)
    if checkpoint.get(SEALED) and _digits(path) is None:
        raise UserError(f"{path} is damaged: it has lost its checksum. {_ADVICE}")
    return checkpoint


@contextmanager
def verifying(path: str | Path) -> Iterator[None]:
    """Verify a file while the block uses it: a thread reads the file, and the end of the block waits for it.

    A nested block for the same file does nothing: loading a generator reads its tokenizer from the same checkpoint.
    Raises UserError for a damaged file, also in the place of an error that the damage caused in the block.
    """
    path = Path(path).resolve()
    if path in _verified.get():
        yield
        return
    before = _verified.set(_verified.get() | {path})
    try:
        with ThreadPoolExecutor(1) as pool:
            verified = pool.submit(verify, path)
            try:
                yield
            except Exception:
                verified.result()
                raise
            verified.result()
    finally:
        _verified.reset(before)


_verified: ContextVar[frozenset[Path]] = ContextVar("verified", default=frozenset())


def verify(path: Path) -> None:
    """Raise UserError if the content of a file does not match its seal, or a member of its zip archive is damaged."""
    digits = _digits(path)
    if digits is None:
        _verify_members(path)
    elif digits != _digest(path):
        raise UserError(f"{path} is damaged: its content is not what was written. {_ADVICE}")


def _verify_members(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError):
        return  # no zip archive: whoever reads the file says so
    if broken is not None:
        raise UserError(f"{path} is damaged: {broken} is not what was written. {_ADVICE}")


def _seal(path: Path) -> None:
    """Make the seal the comment of the archive, whose last two bytes are the comment's length: 0."""
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(_LENGTH.to_bytes(2, "little") + _MARK + b"0" * _DIGITS)
    digest = _digest(path)
    with path.open("r+b") as file:
        file.seek(-_DIGITS, os.SEEK_END)
        file.write(digest)


def _digest(path: Path) -> bytes:
    """SHA-256 of all but the last digits, in hexadecimal digits."""
    left = path.stat().st_size - _DIGITS
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest().encode()


def _digits(path: Path) -> bytes | None:
    """The digits of a file's seal; None where it has none."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _LENGTH, 0))
        mark, digits = file.read(len(_MARK)), file.read()
    return digits if mark == _MARK else None
