"""Where arvid keeps what can be computed again: `~/.cache/arvid`, or the folder that ARVID_CACHE names."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder; it need not exist yet. Deleting it is always safe."""
    return Path(os.environ.get("ARVID_CACHE") or "~/.cache/arvid").expanduser()
