"""Models on the Hugging Face Hub: `hf://user/name`, a repository that `arvid push` has written.

`arvid.json` lists the SHA-256 of each file. Only this list and the weights are downloaded: no other file is read, and
no code is run. The weights are kept in the cache folder. The variable HF_ENDPOINT names another server.
"""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from arvid.contracts import UserError
from arvid.downloading import download, read_url
from arvid.files import atomic_write, cache_dir
from arvid.sealed import Damaged, verify
from arvid.training.keys import PUBLISHED

MANIFEST = "arvid.json"
FORMAT = 1
PREFIX = "hf://"
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)")
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*")

logger = logging.getLogger(__name__)


def is_hub_name(source: object) -> bool:
    """Whether a model is named as `hf://user/name`."""
    return isinstance(source, str) and source.startswith(PREFIX)


def endpoint() -> str:
    """Address of the hub: HF_ENDPOINT, by default https://huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def check_name(name: str) -> tuple[str, str]:
    """User and name of a repository. Raises UserError if it is not `user/name`."""
    match = _NAME.fullmatch(name)
    if match is None or ".." in name:
        raise UserError(f"{name!r} is not the name of a repository: give user/name.")
    return match[1], match[2]


def fetch(source: str) -> Path:
    """The weights of a published model, from the cache or downloaded.

    `source` is `hf://user/name`, optionally with `@REVISION` (branch, tag or commit; main by default). Raises UserError
    if there is no such model, and if its list or weights differ from what was pushed.
    """
    repository, _, revision = source.removeprefix(PREFIX).partition("@")
    user, name = check_name(repository)
    revision = revision or "main"
    if not _REVISION.fullmatch(revision):
        raise UserError(f"{source}: {revision!r} is not a branch, tag or commit.")
    url = f"{endpoint()}/{user}/{name}/resolve/{revision}"
    kept = cache_dir() / "hub" / user
    content = _manifest(url, kept / f"{name}@{revision}.json")
    digest = parse_manifest(content, f"{url}/{MANIFEST}")[str(PUBLISHED)]
    weights = kept / digest[:16] / name / PUBLISHED  # the folder's name is the row's in tables
    download(f"{url}/{PUBLISHED}", weights, checksum=f"sha256:{digest}", headers=_headers())
    return weights


def parse_manifest(content: bytes, where: str) -> dict[str, str]:
    """File -> SHA-256, from `arvid.json`. Raises UserError if it is damaged, newer, or lists no weights."""
    try:
        verify(content)
        value: Any = json.loads(content)
        number, files = value["format"], value["files"]
        digest = files[str(PUBLISHED)]
    except (Damaged, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{where} is not what `arvid push` has written ({error}).") from error
    if number != FORMAT:
        raise UserError(f"{where} has format {number!r}; this arvid reads format {FORMAT}.")
    if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UserError(f"{where} gives no SHA-256 of {PUBLISHED}.")
    return {str(name): str(value) for name, value in files.items()}


def _manifest(url: str, kept: Path) -> bytes:
    """The list of files. Without a connection: the list of the last download."""
    try:
        content = read_url(f"{url}/{MANIFEST}", _headers())
    except UserError as error:
        if kept.is_file():
            logger.warning("%s The copy of the last download is used.", error)
            return kept.read_bytes()
        raise UserError(
            f"{error} A model on the hub is a repository that `arvid push` has written; this one is missing, private, "
            "or of another program."
        ) from error
    parse_manifest(content, f"{url}/{MANIFEST}")
    with atomic_write(kept) as temporary:
        temporary.write_bytes(content)
    return content


def _headers() -> dict[str, str]:
    """Headers with the user's token, if there is one."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # slow to import

    headers: dict[str, str] = build_hf_headers(library_name="arvid")
    return headers
