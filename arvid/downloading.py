"""Downloads published files. An interrupted download is resumed, and the checksum is verified."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from arvid.errors import UserError
from arvid.files import checksum_file

logger = logging.getLogger(__name__)


def download(
    url: str,
    path: Path,
    *,
    checksum: str | None,
    num_bytes: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Download a published file to `path` unless it exists. An existing file is verified too.

    An interrupted download stays as PATH.part, and the next call resumes it. If several processes call this, one
    downloads and the others wait.

    Args:
        url: address of the file.
        path: where to put the file.
        checksum: see `has_checksum`; None if none is published.
        num_bytes: published size, if known.
        headers: headers of the request, such as an authorisation.

    Raises UserError if the address cannot be read, or if the file has another checksum.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.is_file():
            found, advice = path, f"Delete it to download {url} again."
        else:
            found, advice = (
                path.with_name(f"{path.name}.part"),
                f"It was deleted; it is from {url}.",
            )
            _fetch(url, found, num_bytes, headers)
        if checksum is None:
            logger.warning("%s: no checksum is published, so it is taken as it came.", path.name)
        elif not has_checksum(found, checksum):
            if found != path:
                found.unlink()  # resuming it would give the same file
            raise UserError(
                f"{found} is not the published file: its checksum is not {checksum}. {advice}"
            )
        found.replace(path)


def has_checksum(path: Path, checksum: str) -> bool:
    """Whether a file has the checksum ALGORITHM:DIGEST. The digest may be shortened to its beginning.

    ALGORITHM is an algorithm of `checksum_file`. Raises OSError if the file cannot be read.
    """
    algorithm, _, digest = checksum.partition(":")
    return checksum_file(path, algorithm).startswith(digest)


def read_url(url: str, headers: Mapping[str, str] | None = None) -> bytes:
    """The content of a small file. Raises UserError if the address cannot be read."""
    from huggingface_hub.file_download import http_get  # slow to import

    content = io.BytesIO()
    try:
        http_get(url, content, headers=dict(headers or {}))
    except Exception as error:  # from requests or httpx, depending on huggingface_hub's version
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{url} cannot be read ({reason}).") from error
    return content.getvalue()


def _fetch(
    url: str, part: Path, num_bytes: int | None, headers: Mapping[str, str] | None = None
) -> None:
    from huggingface_hub.file_download import http_get  # slow to import

    try:
        with part.open("ab") as file:
            http_get(
                url,
                file,
                resume_size=file.tell(),
                headers=dict(headers or {}),
                expected_size=num_bytes,
                displayed_filename=part.stem,
            )
    except Exception as error:  # from requests or httpx, depending on huggingface_hub's version
        if not part.stat().st_size:
            part.unlink()
        raise UserError(
            f"{url} cannot be downloaded ({error}). Give the same command again to resume, or delete {part} to start "
            "again."
        ) from error
