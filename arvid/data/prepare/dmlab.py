"""TECO's DMLab (arXiv:2210.02396): walks through 3D mazes of 7x7 cells, 300 frames of 64x64."""

from __future__ import annotations

from pathlib import Path

from arvid.data.prepare.prepared import Prepared
from arvid.data.prepare.walks import prepare_arrays


def prepare(source: Path, out: Path) -> Prepared:
    """Prepare a folder with train/*/*.npz and test/*/*.npz. Raises UserError if there are none, or one is damaged."""
    return prepare_arrays(source, out, "a walk through a maze")
