"""TECO's Minecraft (arXiv:2210.02396): walks through marshes, 300 frames of 128x128."""

from __future__ import annotations

from pathlib import Path

from arvid.data.prepare.prepared import Prepared
from arvid.data.prepare.walks import prepare_files


def prepare(source: Path, out: Path) -> Prepared:
    """Prepare a folder with train/*/*.mp4 and test/*/*.mp4, each with its .npz.

    Raises UserError if there are none, or one has no actions.
    """
    return prepare_files(source, out, "a walk through Minecraft")
