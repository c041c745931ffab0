"""The prompt suite: what VBench_full_info.json says, and which video files it asks for.

The file comes from Vchitect/VBench (`vbench/VBench_full_info.json`) or any installation of the package: 946 entries,
944 texts, since two prompts serve in two groups. Nothing of it is shipped.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arvid.errors import UserError
from arvid.files import fitting_name
from arvid.suites.prompts import read_json, read_rewritten, read_text
from arvid.suites.vbench.aggregate import DIMENSIONS

SAMPLES = 5
"""Videos of a prompt that are scored."""
FLICKERING = "temporal_flickering"
FLICKERING_SAMPLES = 25
"""Videos of a prompt of temporal flickering, of which the static filter keeps up to five."""
STYLE = "appearance_style"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One entry of the suite."""

    text: str
    dimensions: tuple[str, ...]
    style: str | None = None
    """The style phrase that appearance_style compares with."""


@dataclass(frozen=True)
class Take:
    """One video of a prompt: which, and the name of its file."""

    prompt: Prompt
    index: int

    @property
    def file(self) -> str:
        """As VBench names it; a name that no file system takes has a hash in the place of its end."""
        return fitting_name(f"{self.prompt.text}-{self.index}", ".mp4")

    @property
    def has_own_name(self) -> bool:
        """Whether VBench itself would look for this name."""
        return self.file == f"{self.prompt.text}-{self.index}.mp4"


def load_suite(path: str | Path) -> tuple[Prompt, ...]:
    """The entries of a VBench_full_info.json. Raises UserError naming the file and the first entry that is wrong."""
    entries = read_json(Path(path), "VBench's list of prompts (VBench_full_info.json)")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: not VBench_full_info.json (a JSON list of prompts).")
    return tuple(_prompt(entry, f"{path}, entry {i}") for i, entry in enumerate(entries))


def check_dimensions(names: Iterable[str], known: Collection[str] = DIMENSIONS) -> tuple[str, ...]:
    """The names without repeats. Raises UserError for one that is not known."""
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

    A text of two entries is the same videos: the entry that comes first stands for it. The videos of a prompt are in
    the order of their names (0, 1, 10, ...), in which VBench's static filter looks at them.
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


def present(wanted: Sequence[Take], folder: Path, *, allow_missing: bool = False) -> list[Take]:
    """Those whose videos are in the folder. Raises UserError for missing ones, unless that is allowed, and for none."""
    found = [take for take in wanted if os.path.isfile(folder / take.file)]
    missing = [take for take in wanted if not os.path.isfile(folder / take.file)]
    if missing and not (allow_missing and found):
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(wanted)} videos, e.g. {missing[0].file!r}. Sample "
            "them; or score those that are there with --allow-missing, which is not comparable."
        )
    return found


def load_rewritten(path: str | Path, suite: Sequence[Prompt]) -> dict[str, str]:
    """What the model is given in the place of each prompt: text by the suite's text.

    Besides the JSON of `arvid.suites.prompts.read_rewritten` a .txt is read, with one line for each entry of the
    suite, in its order (VBench's own `all_dimension_*.txt`). Where a text of two entries has two rewritings the first
    counts, as there is one video for both.

    Raises UserError for another file, and where a prompt has no rewriting.
    """
    path = Path(path)
    found = _lines(path, suite) if path.suffix == ".txt" else read_rewritten(path)
    missing = [p.text for p in suite if not found.get(p.text, "").strip()]
    if missing:
        raise UserError(f"{path}: {len(missing)} prompts have no rewriting, e.g. {missing[0]!r}.")
    return found


def _prompt(entry: Any, where: str) -> Prompt:
    try:
        text, dimensions = entry["prompt_en"], tuple(entry["dimension"])
        style = entry["auxiliary_info"][STYLE][STYLE] if STYLE in dimensions else None
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where}: not as VBench has it ({error!r} is missing or wrong)."
        ) from error
    if not isinstance(text, str) or not text or "/" in text:
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
