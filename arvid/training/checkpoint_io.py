"""Checkpoint files with a checksum: written completely or not at all, and refused if a single bit has changed.

A torch checkpoint is a zip archive. The seal is the archive's comment, `arvid sha256 <64 hexadecimal digits>`: the
SHA-256 of all bytes before the digits. torch.load ignores the comment, so it reads sealed files as any other. The
checkpoint also has the key "sealed": if it is there but the seal is not, the file is damaged. Older files of arvid have
no seal; they are checked against the CRC-32 of the archive's members.

The checkpoint of a sharded training is a folder (see `arvid.training.sharded_files`). Its file `checkpoint.pt` is a
sealed file whose tensors have shapes but no values. Its key "shards" has the SHA-256 of each other file.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from arvid import importing
from arvid.errors import UserError
from arvid.files import atomic_write, sha256_file
from arvid.processes import launched
from arvid.training.published import read_published
from arvid.training.sharded_files import read_tensors, replace_tensors

SEALED = "sealed"
"""Key of a checkpoint whose file has a seal."""
CONTENT = "checkpoint.pt"
"""File in the folder of a sharded checkpoint: all but the values of the tensors."""
SHARDS = "shards"
"""Key in that file: the SHA-256 of each other file of the folder, by name."""
_MARK = b"arvid sha256 "
_DIGITS = 64
_LENGTH = len(_MARK) + _DIGITS
_ADVICE = "Take another copy of it, or train again."


class SealedCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint plugin that writes atomically and with a seal."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        with verifying(path):
            if Path(path).is_dir():
                return read_checkpoint(Path(path))
            return super().load_checkpoint(path, map_location, weights_only=True)


def save_checkpoint(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint and its seal atomically."""
    with atomic_write(path) as temporary:
        torch.save({**checkpoint, SEALED: True}, temporary)
        _seal(temporary)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a file, or the folder of a sharded checkpoint."""
    return path.is_file() or (path / CONTENT).is_file()


def read_checkpoint(path: Path, parts: Collection[str] | None = None) -> dict[str, Any]:
    """The content of a checkpoint of arvid, or of a published generator (.safetensors). No code in the file is run.

    Tensors of a file are mapped from disk. Tensors of a sharded checkpoint are read whole. If `parts` is given (such as
    "state_dict"), only tensors in these parts of a sharded checkpoint are read; the others have no values. The checksum
    is not verified here: call this inside a block of `verifying`. Raises UserError if the checkpoint cannot be read.
    """
    if path.suffix == ".safetensors":
        return read_published(path)
    content = read_content(path)
    if not path.is_dir():
        return content
    tensors: dict[str, Tensor] = {}

    def allocate(name: str, empty: Tensor) -> Tensor:
        if parts is not None and name.partition(".")[0] not in parts:
            return empty
        try:
            tensors[name] = torch.empty_like(empty, device="cpu")
        except RuntimeError as error:
            shape = tuple(empty.shape)
            raise UserError(f"{path}: {name} of shape {shape} does not fit into memory.") from error
        return tensors[name]

    checkpoint: dict[str, Any] = replace_tensors(content, allocate)
    read_tensors(tensors, path, alone=True)
    return checkpoint


def read_content(path: Path) -> dict[str, Any]:
    """As `read_checkpoint`, but tensors of a sharded checkpoint have no values."""
    file = path / CONTENT if path.is_dir() else path
    checkpoint = importing.read_checkpoint(file)
    if checkpoint.get(SEALED) and _digits(file) is None:
        raise UserError(f"{path} is damaged: it has lost its checksum. {_ADVICE}")
    return checkpoint


def checkpoint_sha256(path: Path) -> str:
    """Hex SHA-256 of a checkpoint's file. A sharded one's `checkpoint.pt` holds the hashes of its other files."""
    return sha256_file(path / CONTENT if path.is_dir() else path)


@contextmanager
def verifying(path: str | Path) -> Iterator[None]:
    """Verify a file in a thread while the block uses it; the end of the block waits for the thread.

    A nested block for the same file does nothing (a generator's checkpoint also holds its tokenizer). Raises UserError
    if the file is damaged, also when the block itself fails: the damage is then the likely cause.
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
    """Raise UserError if the content of a file does not match its seal, or a member of its zip archive is damaged.

    If the path is a sharded checkpoint, all its files are verified.
    """
    if path.is_dir():
        _verify_folder(path)
        return
    digits = _digits(path)
    if digits is None:
        _verify_members(path)
    elif digits != _digest(path):
        raise UserError(f"{path} is damaged: its content is not what was written. {_ADVICE}")


def _verify_folder(folder: Path) -> None:
    """Verify a sharded checkpoint. Processes of torchrun or srun divide the files, since all of them read it."""
    verify(folder / CONTENT)
    rank, count = launched()
    digests = importing.read_checkpoint(folder / CONTENT).get(SHARDS)
    if not isinstance(digests, dict) or not all(isinstance(name, str) for name in digests):
        raise UserError(f"{folder} is damaged: {CONTENT} does not list its files. {_ADVICE}")
    for name, digest in list(digests.items())[rank::count]:
        file = folder / name
        if not file.is_file() or sha256_file(file) != digest:
            what = "not what was written" if file.is_file() else "missing"
            raise UserError(f"{folder} is damaged: its file {name} is {what}. {_ADVICE}")


def _verify_members(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError):
        return  # not a zip archive: the caller's read will fail and say so
    if broken is not None:
        raise UserError(f"{path} is damaged: {broken} is not what was written. {_ADVICE}")


def _seal(path: Path) -> None:
    """Write the seal as the archive's comment. An archive without a comment ends with two bytes: its length, 0."""
    with path.open("r+b") as file:
        # The length is part of the sealed bytes, so write it (and blank digits) before the digest is taken.
        file.seek(-2, os.SEEK_END)
        file.write(_LENGTH.to_bytes(2, "little") + _MARK + b"0" * _DIGITS)
    digest = _digest(path)
    with path.open("r+b") as file:
        file.seek(-_DIGITS, os.SEEK_END)
        file.write(digest)


def _digest(path: Path) -> bytes:
    """SHA-256, in hexadecimal digits, of a file without the seal's own digits at its end."""
    left = path.stat().st_size - _DIGITS
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest().encode()


def _digits(path: Path) -> bytes | None:
    """The digits of a file's seal, or None if it has no seal."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _LENGTH, 0))
        mark, digits = file.read(len(_MARK)), file.read()
    return digits if mark == _MARK else None
