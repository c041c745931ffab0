"""Any folder of videos. Class folders give captions and labels; a hash of the names gives the split.

The split is the same as that of `VideoFolder(root, split=..., val_fraction=...)`.
"""

from __future__ import annotations

from pathlib import Path

from arvid.data.folder import find_videos
from arvid.data.prepare.prepared import Item, Prepared, hashed_splits
from arvid.data.prepare.sources import link_videos, unpacked


def prepare(source: Path, out: Path, *, val_fraction: float) -> Prepared:
    """Prepare the dataset of a folder or archive.

    Args:
        source: ROOT/<Class>/<video>, or ROOT/<video>; an archive may hold ROOT or its content.
        out: the folder OUT.
        val_fraction: share of the videos for validation.

    Raises UserError if there are no videos.
    """
    root = unpacked(source, out)
    while root != source and len(inside := list(root.iterdir())) == 1 and inside[0].is_dir():
        root = inside[0]  # the archive's single top folder
    entries = find_videos(root)
    link_videos(root, out)
    items = [Item(entry.name, entry.caption, entry.label) for entry in entries]
    splits = hashed_splits([item.name for item in items], val_fraction)
    return Prepared(items=items, splits=splits, classes=entries.classes)
