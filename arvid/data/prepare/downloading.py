"""Downloads that go on where they stopped and are checked: huggingface_hub's, for addresses beside the hub too."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from huggingface_hub.file_download import http_get

from arvid.data.prepare.facts import Remote
from arvid.errors import UserError

logger = logging.getLogger(__name__)


def download(remote: Remote, folder: Path) -> Path:
    """A file in a folder, downloaded if it is not there. What is there already is checked as well.

    An interrupted download is FILE.part, and the next one goes on from its end. Raises UserError where the address
    cannot be read, or the file has another checksum than is published.
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
        except Exception as error:  # of requests or httpx, as huggingface_hub's version has it
            raise UserError(
                f"{remote.url} cannot be downloaded ({error}). Give the same command again to go on, or download the "
                "file yourself and name its folder with --source."
            ) from error


def _verify(remote: Remote, path: Path) -> None:
    if remote.checksum is None:
        logger.warning("%s: no checksum is published, so it is taken as it came.", path.name)
        return
    algorithm, _, expected = remote.checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        raise UserError(
            f"{path} is damaged or another file: its {algorithm} is {found}, and {expected} is published for "
            f"{remote.url}. Delete it and give the command again."
        )
