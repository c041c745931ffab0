"""DPG-Bench (arXiv:2403.05135): long prompts, and questions about the image that depend on each other.

Layout FOLDER/images/<prompt file's stem>.png: four images in a 2x2 grid. The scorer asks mPLUG every question about
every tile and writes the answers to `results_detail.txt`. arvid computes the scores from the answers, by the scorer's
rules:

- The first row of the question file is skipped. If the scorer needs a missing parent question, it fails and skips the
  image.
- A question counts as "no" if one of its parents counts as "no". This is one pass in the order of the question file, on
  the updated scores. So a "no" passes on only if parents come before their children.
- Score of a tile: mean over questions. Score of an image: mean over tiles. DPG: mean over images, times 100.
- Category scores use the answers before this pass, and only each image's last tile.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from arvid.errors import UserError
from arvid.evaluation.records import MetricValue, standard_error
from arvid.suites.image_benchmarks.benchmark import Batch, ImageBenchmark, Part, ScorerRun
from arvid.suites.prompts import read_text

TILES = 4
RESULTS = "results.txt"
DETAILS = "results_detail.txt"
_END_MARKER = "DPG-Bench score:"
_JUDGE = "mPLUG-large VQA"
_COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
_DETAIL = re.compile(r"(?P<image>.*?), (?P<tile>\(\d+, \d+, \d+, \d+\)), (?P<rest>.*)")


@dataclass(frozen=True)
class Item:
    """The questions of one prompt, by id, in the order of the file."""

    questions: dict[int, str] = field(default_factory=dict)
    parents: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Question id -> ids of its parent questions; id 0 means no parent."""
    categories: dict[int, str] = field(default_factory=dict)
    """e.g. 'attribute - color'."""

    @property
    def is_complete(self) -> bool:
        """Whether every parent question exists."""
        return all(p in self.questions for ps in self.parents.values() for p in ps if p)


@dataclass(frozen=True)
class DpgScores:
    """DPG-Bench's scores, from 0 to 100."""

    images: dict[str, float]
    """Item -> score of its image."""
    level1: dict[str, list[float]]
    """Broad category (global, entity, attribute, relation, other) -> answers, 0 or 100 each."""
    level2: dict[str, list[float]]
    """Detailed category -> answers, 0 or 100 each."""

    @property
    def total(self) -> float:
        """Mean score of all images, 0 to 100."""
        return float(np.mean(list(self.images.values())))


class DpgBench(ImageBenchmark):
    """DPG-Bench for a row.

    Args:
        row: folder of the row.
        questions: the question file dpg_bench.csv, for scoring and for the scores.
    """

    name = "dpg-bench"
    images_per_prompt = TILES
    repository = "https://github.com/TencentQQGYLab/ELLA"

    def __init__(self, row: Path, *, questions: Path | None = None) -> None:
        super().__init__(row)
        self.questions = questions

    @property
    def images(self) -> Path:
        """Folder of the generated images."""
        return self.folder / "images"

    def parts(self, prompts: Path) -> list[Part]:
        files = sorted(prompts.glob("*.txt"))
        if not files:
            raise UserError(f"{prompts}: holds no prompts (*.txt).")
        if odd := [file.name for file in files if "." in file.stem]:
            raise UserError(
                f"{prompts / odd[0]}: the scorer cuts item names at a full stop. Rename the file without one."
            )
        batches = (
            Batch(
                prompt=read_text(file, "the prompt").strip(),
                files=(self.images / f"{file.stem}.png",),
                num_images=TILES,
            )
            for file in files
        )
        return [Part(folder=self.folder, batches=tuple(batches))]

    def scored_folders(self) -> list[Path]:
        return [self.folder]

    def scorer_runs(self, scorer: Path) -> list[ScorerRun]:
        result = self.folder / RESULTS
        questions = self.questions or scorer / "dpg_bench" / "dpg_bench.csv"
        options = {
            "--image-root-path": self.images,
            "--resolution": self._tile_size(),
            "--csv": questions.absolute(),
            "--res-path": result,
            "--pic-num": TILES,
            "--vqa-model": "mplug",
        }
        return [
            ScorerRun(
                script=scorer / "dpg_bench" / "compute_dpg_bench.py",
                arguments=tuple(str(x) for pair in options.items() for x in pair),
                result=result,
                part=self.folder,
                images=self.images,
                end_marker=_END_MARKER,
            )
        ]

    def metrics(self) -> list[MetricValue]:
        if self.questions is None:
            raise UserError(
                "DPG-Bench's scores need --questions: dpg_bench.csv "
                f"(folder dpg_bench of {self.repository})."
            )
        items = read_questions(self.questions)
        images = sorted(path.stem for path in self.images.glob("*.png"))
        answers = read_details(self.folder / DETAILS, items)
        asked = [name for name in images if name in items]
        if missing := [
            n for n in asked if items[n].is_complete and len(answers.get(n, ())) != TILES
        ]:
            raise UserError(
                f"{self.folder / DETAILS} lacks answers for {len(missing)} of "
                f"{len(images)} images, e.g. {missing[0]}. Score them again."
            )
        scored = [
            n for n in asked if items[n].is_complete or _is_scored(items[n], answers.get(n, ()))
        ]
        if skipped := sorted(set(images) - set(scored)):
            print(
                f"Left out because questions are missing, as in the scorer: {', '.join(skipped)}."
            )
        scores = aggregate(items, {name: answers[name] for name in scored})
        self._compare(scores.total)
        return _metric_values(scores)

    def _tile_size(self) -> int:
        import cv2

        first = min(self.images.glob("*.png"), default=None)
        picture = None if first is None else cv2.imread(str(first))
        if picture is None:
            raise UserError(f"{self.images}: holds no images to score.")
        return picture.shape[1] // 2

    def _compare(self, total: float) -> None:
        """Raise UserError unless the scorer's own total is the same."""
        text = read_text(self.folder / RESULTS, "the scorer's results")
        found = re.findall(rf"^{_END_MARKER} (\S+)$", text, re.MULTILINE)
        if not found:
            raise UserError(f"{self.folder / RESULTS}: the scorer did not finish. Score again.")
        if abs(float(found[-1]) - total) > 1e-6:
            raise UserError(
                f"{self.folder / RESULTS} says {found[-1]}, but its answers give {total}: "
                "they come from another question file or from several runs. Score again."
            )


def aggregate(
    items: Mapping[str, Item], answers: Mapping[str, Sequence[Mapping[int, bool]]]
) -> DpgScores:
    """Scores from `answers`: item -> one mapping per tile, question id -> whether the answer is yes.

    Raises UserError if there are no answers.
    """
    if not answers:
        raise UserError("DPG-Bench has no answers to compute scores from. Run the scorer first.")
    level2: dict[str, list[float]] = {}
    for name, tiles in answers.items():
        for question, yes in tiles[-1].items():
            level2.setdefault(items[name].categories[question], []).append(100.0 * yes)
    level1: dict[str, list[float]] = {}
    for category, values in level2.items():
        level1.setdefault(category.split("-")[0].strip(), []).extend(values)
    images = {
        name: 100 * float(np.mean([tile_score(items[name], tile) for tile in tiles]))
        for name, tiles in answers.items()
    }
    return DpgScores(images, level1, level2)


def tile_score(item: Item, answers: Mapping[int, bool]) -> float:
    """Share of the questions that count as yes, from 0 to 1.

    Raises KeyError if the scorer would look up a parent question that does not exist.
    """
    scores = {question: float(answers[question]) for question in item.questions}
    for question, parents in item.parents.items():  # one pass: later questions see earlier changes
        if any(parent and not scores[parent] for parent in parents):
            scores[question] = 0.0
    return sum(scores.values()) / len(scores)


def _is_scored(item: Item, tiles: Sequence[Mapping[int, bool]]) -> bool:
    """Whether the scorer can score all tiles of an item that lacks a question."""
    try:
        return len([tile_score(item, tile) for tile in tiles]) == TILES
    except KeyError:
        return False


def read_questions(path: Path) -> dict[str, Item]:
    """Items of dpg_bench.csv as the scorer reads it: without the first row; consecutive rows of an id are one item.

    Raises UserError for any other file.
    """
    items: dict[str, Item] = {}
    last = None
    rows = csv.DictReader(io.StringIO(read_text(path, "the question file"), newline=""))
    if missing := set(_COLUMNS) - set(rows.fieldnames or ()):
        raise UserError(f"{path}: not DPG-Bench's question file, without {', '.join(missing)}.")
    for i, row in enumerate(rows):
        if i == 0:
            continue
        try:
            question = int(row["proposition_id"])
            parents = tuple(int(parent) for parent in (row["dependency"] or "").split(","))
        except ValueError as error:
            raise UserError(f"{path}, line {rows.line_num}: {error}.") from error
        name = row["item_id"]
        if name != last:  # rows of an id that comes again replace the earlier ones
            items[name] = Item()
        items[name].questions[question] = row["question_natural_language"]
        items[name].parents[question] = parents
        items[name].categories[question] = row["tuple"].split("(")[0].strip()
        last = name
    return items


def read_details(path: Path, items: Mapping[str, Item]) -> dict[str, list[dict[int, bool]]]:
    """Answers by item and tile from lines `image, (x0, y0, x1, y1), question, answer`. Only `yes` counts as yes.

    Items missing from the question file and tiles with missing answers are left out. Raises UserError for a line in
    another format.
    """
    lines: dict[tuple[str, str], list[str]] = {}
    for i, line in enumerate(read_text(path, "the scorer's answers").rstrip("\n").split("\n")):
        match = _DETAIL.fullmatch(line)
        if match is None:
            raise UserError(f"{path}, line {i + 1}: not an answer of DPG-Bench's scorer.")
        name = match["image"].rpartition("/")[2].split(".")[0]
        lines.setdefault((name, match["tile"]), []).append(match["rest"])
    found: dict[str, list[dict[int, bool]]] = {}
    for (name, _), rest in lines.items():
        item = items.get(name)
        if item is not None and len(rest) == len(item.questions):
            found.setdefault(name, []).append(_tile_answers(item, rest, path))
    return found


def _tile_answers(item: Item, rest: Sequence[str], path: Path) -> dict[int, bool]:
    answers = {}
    for (question_id, question), text in zip(item.questions.items(), rest, strict=True):
        if not text.startswith(f"{question}, "):
            raise UserError(f"{path}: answers {text!r} where {question!r} was asked.")
        answers[question_id] = text.removeprefix(f"{question}, ") == "yes"
    return answers


def _metric_values(scores: DpgScores) -> list[MetricValue]:
    images = list(scores.images.values())
    found = [
        MetricValue(
            name="dpg",
            label="DPG-Bench",
            value=scores.total,
            spread=standard_error(images),
            spread_kind="standard error",
            count=len(images),
            feature_network=_JUDGE,
            protocol=DpgBench.name,
        )
    ]
    for level, table in (("l1", scores.level1), ("l2", scores.level2)):
        found += [
            MetricValue(
                name=f"dpg-{level}-{re.sub('[^a-z0-9]+', '-', category.lower()).strip('-')}",
                label=f"DPG {category}",
                value=float(np.mean(values)),
                count=len(values),
                feature_network=_JUDGE,
                protocol=DpgBench.name,
            )
            for category, values in sorted(table.items())
        ]
    return found
