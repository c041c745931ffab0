"""The prompt suite: reads VBench_full_info.json and lists the video files that it requires.

The file comes from Vchitect/VBench (`vbench/VBench_full_info.json`) or an installation of the package. It has 946
entries and 944 different texts: two prompts occur twice. arvid does not include the file.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from arvid.errors import UserError
from arvid.files import can_be_name, fitting_name
from arvid.suites.prompts import read_json, read_rewritten, read_text
from arvid.suites.vbench.aggregate import DIMENSIONS

T = TypeVar("T", bound="Named")

SAMPLES = 5
"""Number of scored videos per prompt."""
FLICKERING = "temporal_flickering"
FLICKERING_SAMPLES = 25
"""Number of sampled videos per prompt of temporal flickering; up to five static ones are scored."""
STYLE = "appearance_style"


class Named(Protocol):
    """A video with a file name."""

    @property
    def file(self) -> str:
        """File name, below the folder of the videos."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One entry of the suite."""

    text: str
    dimensions: tuple[str, ...]
    style: str | None = None
    """Style phrase for appearance_style; None for prompts of other dimensions."""


@dataclass(frozen=True)
class Take:
    """One video of a prompt: the prompt and the video's index."""

    prompt: Prompt
    index: int

    @property
    def file(self) -> str:
        """File name as in VBench. In a name that is too long a hash replaces the end."""
        return fitting_name(f"{self.prompt.text}-{self.index}", ".mp4")

    @property
    def has_own_name(self) -> bool:
        """Whether VBench itself uses this file name."""
        return self.file == f"{self.prompt.text}-{self.index}.mp4"


def load_suite(path: str | Path) -> tuple[Prompt, ...]:
    """The entries of a VBench_full_info.json. Raises UserError with the file and the first invalid entry."""
    entries = read_json(Path(path), "VBench's list of prompts (VBench_full_info.json)")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: not VBench_full_info.json (a JSON list of prompts).")
    return tuple(_prompt(entry, f"{path}, entry {i}") for i, entry in enumerate(entries))


def check_dimensions(names: Iterable[str], known: Collection[str] = DIMENSIONS) -> tuple[str, ...]:
    """The names without duplicates. Raises UserError for an unknown name."""
    chosen = tuple(dict.fromkeys(names))
    for name in chosen:
        if name not in known:
            raise UserError(f"There is no dimension {name!r} here. Known: {', '.join(known)}.")
    return chosen


def takes(
    suite: Sequence[Prompt],
    dimensions: Collection[str],
    *,
    flickering_samples: int = FLICKERING_SAMPLES,
) -> list[Take]:
    """The videos that these dimensions need, in the suite's order, each once.

    Two entries with the same text share their videos, listed under the first entry. Videos of a prompt are sorted by
    name (0, 1, 10, ...), the order of VBench's static filter.
    """
    counts: dict[str, tuple[Prompt, int]] = {}
    for prompt in suite:
        if not set(prompt.dimensions) & set(dimensions):
            continue
        count = flickering_samples if FLICKERING in prompt.dimensions else SAMPLES
        first, before = counts.get(prompt.text, (prompt, 0))
        counts[prompt.text] = (first, max(before, count))
    return [
        Take(prompt, index)
        for prompt, count in counts.values()
        for index in sorted(range(count), key=str)
    ]


def present(wanted: Sequence[T], folder: Path, *, allow_missing: bool = False) -> list[T]:
    """The wanted videos that exist in the folder.

    Raises UserError if some are missing (unless `allow_missing`), if there are none, or if none is wanted.
    """
    if not wanted:
        raise UserError(
            "The list of prompts has none of this dimension. Use --dimension for others."
        )
    found = [take for take in wanted if os.path.isfile(folder / take.file)]
    missing = [take for take in wanted if not os.path.isfile(folder / take.file)]
    if missing and not (allow_missing and found):
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(wanted)} videos, e.g. {missing[0].file!r}. Sample "
            "them, or score only the existing ones with --allow-missing (values are then not comparable)."
        )
    return found


def load_rewritten(path: str | Path, suite: Sequence[Prompt]) -> dict[str, str]:
    """Rewritten prompts: the suite's text -> text for the model.

    The file is JSON as in `arvid.suites.prompts.read_rewritten`, or a .txt with one line per entry in the suite's order
    (VBench's `all_dimension_*.txt`). If a text has two rewritten versions, the first counts.

    Raises UserError for another file, and if a prompt has no rewritten text.
    """
    path = Path(path)
    found = _lines(path, suite) if path.suffix == ".txt" else read_rewritten(path)
    missing = [p.text for p in suite if not found.get(p.text, "").strip()]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} prompts have no rewritten text, e.g. {missing[0]!r}."
        )
    return found


def _prompt(entry: Any, where: str) -> Prompt:
    try:
        text, dimensions = entry["prompt_en"], tuple(entry["dimension"])
        style = entry["auxiliary_info"][STYLE][STYLE] if STYLE in dimensions else None
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where}: not an entry of VBench's list ({error!r} is missing or wrong)."
        ) from error
    if not isinstance(text, str) or not can_be_name(text):
        raise UserError(f"{where}: {text!r} cannot be the name of a video.")
    check_dimensions(dimensions)
    return Prompt(text=text, dimensions=dimensions, style=style)


def _lines(path: Path, suite: Sequence[Prompt]) -> dict[str, str]:
    lines = read_text(path, "the file of rewritten prompts").splitlines()
    if len(lines) != len(suite):
        raise UserError(
            f"{path}: has {len(lines)} lines and the suite {len(suite)} entries; they must correspond."
        )
    found: dict[str, str] = {}
    for prompt, line in zip(suite, lines, strict=True):
        found.setdefault(prompt.text, line.strip())
    return found
