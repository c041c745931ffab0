"""Common interface of the image benchmarks: prompts, files, scorers and scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from arvid.evaluation.records import MetricValue


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The images of one prompt, which are sampled together."""

    prompt: str
    files: tuple[Path, ...]
    """One file per image, or one file for all images as a square grid, row by row."""
    num_images: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """Prompts that are sampled and scored together: a whole benchmark or one of its categories."""

    folder: Path
    batches: tuple[Batch, ...]
    side_files: tuple[tuple[Path, str], ...] = ()
    """Path and content of text files that the scorer needs beside the images."""


@dataclass(frozen=True, kw_only=True)
class ScorerRun:
    """One call of a scorer's script, in the script's own folder."""

    script: Path
    arguments: tuple[str, ...]
    result: Path
    """The file that the script writes last."""
    part: Path
    """Folder of the part that it scores."""
    images: Path
    """Folder with the images that it reads, at any depth, and no other images."""
    end_marker: str = ""
    """Text that only a complete result contains, for a script that writes its result step by step."""


class ImageBenchmark(ABC):
    """A text-to-image benchmark for one row.

    Args:
        row: folder of the row. Images and scorer output are in its subfolder `name`.
    """

    name: ClassVar[str]
    images_per_prompt: ClassVar[int]
    repository: ClassVar[str]
    """Repository of the scorer."""

    def __init__(self, row: Path) -> None:
        self.row = row.absolute()
        self.folder = self.row / self.name

    @abstractmethod
    def parts(self, prompts: Path) -> list[Part]:
        """The parts to sample. Raises UserError for missing or invalid prompt files."""

    @abstractmethod
    def scored_folders(self) -> list[Path]:
        """Folders of the parts that contain images."""

    @abstractmethod
    def scorer_runs(self, scorer: Path) -> list[ScorerRun]:
        """Calls of the scorer. `scorer` is a checkout of `repository`."""

    @abstractmethod
    def metrics(self) -> list[MetricValue]:
        """The benchmark's scores from the scorer's output.

        Raises UserError if the output is missing, damaged or does not cover all images.
        """
