"""Sky time-lapse (arXiv:1709.07592): folders of frames, sky_train/<long video>/<short video>/*.jpg and sky_test/..."""

from __future__ import annotations

from pathlib import Path

from arvid.data.prepare.prepared import Item, Prepared
from arvid.data.prepare.sources import (
    folder_with,
    link_videos,
    require_videos,
    unpacked,
    videos_below,
)

CAPTION = "a time-lapse of the sky"
FOLDERS = {"train": "sky_train", "test": "sky_test"}


def prepare(source: Path, out: Path) -> Prepared:
    """Prepare a folder or archive with sky_train and sky_test. Raises UserError if they are missing."""
    found = unpacked(source, out)
    root = folder_with(found, *FOLDERS.values())
    names = [] if root is None else videos_below(root)
    splits = {
        split: [name for name in names if name.startswith(f"{folder}/")]
        for split, folder in FOLDERS.items()
    }
    taken = [name for chosen in splits.values() for name in chosen]
    require_videos(taken, source, "folders of frames below sky_train and sky_test")
    assert root is not None
    link_videos(root, out)
    return Prepared(items=[Item(name, CAPTION) for name in taken], splits=splits)
