"""Resumable downloads with checksums, by huggingface_hub's download function, which takes any URL."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from huggingface_hub.file_download import http_get

from arvid.data.prepare.facts import Remote
from arvid.errors import UserError

logger = logging.getLogger(__name__)


def download(remote: Remote, folder: Path) -> Path:
    """Download a file into a folder if it is not there. An existing file is verified too.

    An interrupted download stays as FILE.part and is resumed by the next call. Raises UserError if the URL cannot be
    read, or the checksum differs from the published one.
    """
    path = folder / remote.file_name
    if not path.is_file():
        part = path.with_name(f"{path.name}.part")
        _fetch(remote, part)
        _verify(remote, part)
        part.replace(path)
        return path
    _verify(remote, path)
    return path


def _fetch(remote: Remote, part: Path) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        try:
            http_get(
                remote.url,
                file,
                resume_size=file.tell(),
                expected_size=remote.num_bytes,
                displayed_filename=remote.file_name,
            )
        except (
            Exception
        ) as error:  # from requests or httpx, depending on the version of huggingface_hub
            raise UserError(
                f"{remote.url} cannot be downloaded ({error}). Run the same command again to resume, or download the "
                "file yourself and give its folder with --source."
            ) from error


def _verify(remote: Remote, path: Path) -> None:
    if remote.checksum is None:
        logger.warning("%s: no checksum is published, so it was not verified.", path.name)
        return
    algorithm, _, expected = remote.checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        raise UserError(
            f"{path} is damaged or another file: its {algorithm} is {found}, but {expected} is published for "
            f"{remote.url}. Delete it and run the command again."
        )
