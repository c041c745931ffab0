"""Prompts, images and file names of videos of VBench-I2V, VBench-Long and VBench-2.0.

The lists of prompts are files of the repository Vchitect/VBench (`Relative.prompts`). arvid does not include them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arvid.errors import UserError
from arvid.files import can_be_name, fitting_name
from arvid.suites.prompts import read_json, read_rewritten
from arvid.suites.vbench.relatives import Relative
from arvid.suites.vbench.suite import check_dimensions

IMAGES = Path("vbench2_beta_i2v/data/crop")
"""Folder of VBench-I2V's cropped images in the repository: one folder for each ratio, such as 16-9."""
_RATIO = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry of a list of prompts."""

    text: str
    dimensions: tuple[str, ...]
    image: str | None = None
    """File name of its image; None for benchmarks without images."""


@dataclass(frozen=True, kw_only=True)
class RelativeTake:
    """One video of a prompt."""

    entry: Entry
    index: int
    file: str
    """File name in the benchmark, including the folder of the dimension if there is one."""
    has_own_name: bool
    """Whether the benchmark itself uses this file name."""

    def seed(self, run_seed: int = 0) -> int:
        """Seed of the video: 63 bits of a hash of the run's seed and the file name."""
        digest = hashlib.sha256(f"{run_seed}\0{self.file}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1  # seeds must fit a signed int64


def load_entries(path: Path, relative: Relative) -> tuple[Entry, ...]:
    """The entries of a list of prompts. Raises UserError with the file and the first invalid entry."""
    what = f"{relative.rules.title}'s list of prompts ({relative.prompts})"
    entries = read_json(path, what)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: not {what}.")
    return tuple(_entry(e, f"{path}, entry {i}", relative) for i, e in enumerate(entries))


def _entry(entry: Any, where: str, relative: Relative) -> Entry:
    try:
        text, dimensions = entry["prompt_en"], tuple(entry["dimension"])
        image = entry["image_name"] if relative.has_images else None
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where}: not an entry of {relative.rules.title} ({error!r} is missing or wrong)."
        ) from error
    for name in (text, image):
        if name is not None and not (isinstance(name, str) and can_be_name(name)):
            raise UserError(f"{where}: {name!r} cannot be the name of a file.")
    # VBench-I2V's list also names temporal flickering, which VBench-I2V does not score.
    known = tuple(name for name in dimensions if name in relative.rules.dimensions)
    if not known:
        raise UserError(f"{where}: none of {dimensions} is a dimension of {relative.rules.title}.")
    return Entry(text=text, dimensions=known, image=image)


def relative_takes(
    entries: Sequence[Entry], relative: Relative, dimensions: Collection[str]
) -> list[RelativeTake]:
    """The videos that these dimensions need, in the list's order, each once.

    Raises UserError for an unknown dimension.
    """
    chosen = check_dimensions(dimensions, relative.rules.dimensions)
    found: dict[str, RelativeTake] = {}
    for entry in entries:
        for dimension in entry.dimensions:
            if dimension not in chosen:
                continue
            for index in range(relative.num_samples(dimension)):
                take = _take(entry, index, dimension, relative)
                found.setdefault(take.file, take)
    return list(found.values())


def _take(entry: Entry, index: int, dimension: str, relative: Relative) -> RelativeTake:
    stem = f"{entry.text[: relative.name_length]}-{index}"
    name = fitting_name(stem, ".mp4")
    return RelativeTake(
        entry=entry,
        index=index,
        file=f"{dimension}/{name}" if relative.by_dimension else name,
        has_own_name=name == f"{stem}.mp4",
    )


def load_relative_texts(path: Path, entries: Sequence[Entry]) -> dict[str, str]:
    """Original prompt -> rewritten prompt, from JSON as in `read_rewritten`.

    Raises UserError if the file is not valid, or a prompt has no rewritten text.
    """
    found = read_rewritten(path)
    missing = [e.text for e in entries if not found.get(e.text, "").strip()]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} prompts have no rewritten text, e.g. {missing[0]!r}."
        )
    return found


def nearest_ratio(images: Path, height: int, width: int) -> str:
    """The folder of cropped images with the ratio nearest to frames of height x width pixels.

    Raises UserError if there is no folder named like 16-9.
    """
    folders = [p.name for p in images.iterdir() if p.is_dir()] if images.is_dir() else []
    ratios = {name: _ratio(match) for name in folders if (match := _RATIO.fullmatch(name))}
    if not ratios:
        raise UserError(
            f"{images} has no folders of cropped images (1-1, 8-5, 7-4, 16-9). Download them with VBench's "
            "vbench2_beta_i2v/download_data.sh."
        )
    return min(sorted(ratios), key=lambda name: abs(ratios[name] * height / width - 1))


def _ratio(match: re.Match[str]) -> float:
    """Width divided by height, from a folder's name."""
    return int(match[1]) / max(int(match[2]), 1)


def require_images(entries: Sequence[Entry], folder: Path) -> None:
    """Raise UserError if the images of some entries are not in a folder."""
    missing = [e.image for e in entries if e.image and not (folder / e.image).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} images, e.g. {missing[0]!r}.")
