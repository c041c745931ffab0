"""What the image benchmarks have in common: prompts, files, scorers and numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from arvid.evaluation.records import MetricValue


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The images of one prompt, which are always drawn together."""

    prompt: str
    files: tuple[Path, ...]
    """One for each image; or a single one, into which they go as a square grid, row by row."""
    num_images: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """Prompts that are sampled and scored together: a whole benchmark or one of its categories."""

    folder: Path
    batches: tuple[Batch, ...]
    side_files: tuple[tuple[Path, str], ...] = ()
    """Text that the scorer wants to find beside the images."""


@dataclass(frozen=True, kw_only=True)
class ScorerRun:
    """One call of a scorer's script, in the script's own folder."""

    script: Path
    arguments: tuple[str, ...]
    result: Path
    """What the script writes last."""
    part: Path
    """Folder of the part that it scores."""
    images: Path
    """Folder of the images that it reads, at any depth; holds no other pictures."""
    last_words: str = ""
    """What stands in a result that is whole, where the script writes it bit by bit."""


class ImageBenchmark(ABC):
    """A benchmark of text-to-image generation for one row.

    Args:
        row: folder of the row; images and answers lie in its subfolder `name`.
    """

    name: ClassVar[str]
    images_per_prompt: ClassVar[int]
    repository: ClassVar[str]
    """Where the scorer comes from."""

    def __init__(self, row: Path) -> None:
        self.row = row.absolute()
        self.folder = self.row / self.name

    @abstractmethod
    def parts(self, prompts: Path) -> list[Part]:
        """What is to be sampled. Raises UserError for prompt files that are missing or not what they should be."""

    @abstractmethod
    def scored_folders(self) -> list[Path]:
        """The parts' folders that hold images."""

    @abstractmethod
    def scorer_runs(self, scorer: Path) -> list[ScorerRun]:
        """How the scorer (a checkout of `repository`) is called."""

    @abstractmethod
    def metrics(self) -> list[MetricValue]:
        """The benchmark's numbers from the scorer's answers.

        Raises UserError for answers that are missing, damaged or not those of all images.
        """
