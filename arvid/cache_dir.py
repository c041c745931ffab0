"""The cache folder for results that can be computed again: ARVID_CACHE, by default `~/.cache/arvid`."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder, which may not exist yet. Deleting it is always safe."""
    return Path(os.environ.get("ARVID_CACHE") or "~/.cache/arvid").expanduser()
