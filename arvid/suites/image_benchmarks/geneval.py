"""GenEval (arXiv:2310.11513): objects, their number, colour and position, judged by a detector and CLIP.

Layout FOLDER/00000/{metadata.jsonl,samples/0000.png,...}, one folder per line of evaluation_metadata.jsonl. The scorer
(Mask2Former and CLIP L/14, on a CUDA device) writes one line per image. A task's score is its share of correct images.
The overall score is the unweighted mean over the six tasks, although their sizes differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arvid.errors import UserError
from arvid.evaluation.records import MetricValue, standard_error
from arvid.suites.image_benchmarks.benchmark import Batch, ImageBenchmark, Part, ScorerRun
from arvid.suites.manifest import read_manifest
from arvid.suites.prompts import read_text

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Judgement:
    """The scorer's result for one image."""

    task: str
    prompt: str
    correct: bool


@dataclass(frozen=True)
class TaskScore:
    """Share of correct images, from 0 to 1."""

    value: float
    standard_error: float | None
    """Standard error over prompts, because images of one prompt are not independent."""
    num_images: int


class GenEval(ImageBenchmark):
    """GenEval for a row.

    Args:
        row: folder of the row.
        detector: folder of the detector's weights, for scoring.
    """

    name = "geneval"
    images_per_prompt = 4
    repository = "https://github.com/djghosh13/geneval"

    def __init__(self, row: Path, *, detector: Path | None = None) -> None:
        super().__init__(row)
        self.detector = detector

    def parts(self, prompts: Path) -> list[Part]:
        batches, side_files = [], []
        for i, line in enumerate(read_text(prompts, "GenEval's metadata").splitlines()):
            place = self.folder / f"{i:05d}"
            files = tuple(place / "samples" / f"{k:04d}.png" for k in range(self.images_per_prompt))
            prompt = _prompt(line, f"{prompts}, line {i + 1}")
            batches.append(Batch(prompt=prompt, files=files, num_images=len(files)))
            side_files.append((place / "metadata.jsonl", line + "\n"))
        if not batches:
            raise UserError(f"{prompts}: holds no prompts.")
        return [Part(folder=self.folder, batches=tuple(batches), side_files=tuple(side_files))]

    def scored_folders(self) -> list[Path]:
        return [self.folder]

    def scorer_runs(self, scorer: Path) -> list[ScorerRun]:
        if self.detector is None:
            raise UserError(
                "GenEval's scorer needs --detector: the folder where its "
                "download_models.sh stored Mask2Former."
            )
        result = self.folder / RESULTS
        arguments = (str(self.folder), "--outfile", str(result))
        return [
            ScorerRun(
                script=scorer / "evaluation" / "evaluate_images.py",
                arguments=(*arguments, "--model-path", str(self.detector.absolute())),
                result=result,
                part=self.folder,
                images=self.folder,
            )
        ]

    def metrics(self) -> list[MetricValue]:
        judgements = read_results(self.folder / RESULTS)
        manifest = read_manifest(self.folder)
        if manifest and manifest["num_images"] != len(judgements):
            raise UserError(
                f"{self.folder / RESULTS} judges {len(judgements)} images of the "
                f"{manifest['num_images']} sampled: score them again."
            )
        scores = aggregate(judgements)
        return [
            MetricValue(
                name=f"geneval-{task.replace('_', '-')}",
                label=f"GenEval {task.replace('_', ' ')}",
                value=score.value,
                spread=score.standard_error,
                spread_kind="standard error",
                count=score.num_images,
                feature_network="Mask2Former Swin-S, CLIP ViT-L/14",
                protocol=self.name,
            )
            for task, score in scores.items()
        ]


def aggregate(judgements: Iterable[Judgement]) -> dict[str, TaskScore]:
    """Scores of `overall` and the six tasks. Raises UserError unless there are exactly these six tasks."""
    by_task: dict[str, dict[str, list[bool]]] = {}
    for judged in judgements:
        by_task.setdefault(judged.task, {}).setdefault(judged.prompt, []).append(judged.correct)
    if by_task.keys() != set(TASKS):
        raise UserError(
            f"GenEval's overall score is the mean of {', '.join(TASKS)}; "
            f"the results have: {', '.join(by_task) or 'nothing'}. Score all images again."
        )
    tasks = {task: _task_score(by_task[task]) for task in TASKS}
    errors = [score.standard_error for score in tasks.values()]
    known = [error for error in errors if error is not None]
    overall = TaskScore(
        float(np.mean([score.value for score in tasks.values()])),
        # standard error of a mean of independent tasks: sqrt(sum of squares) / number
        float(np.linalg.norm(known) / len(TASKS)) if len(known) == len(TASKS) else None,
        sum(score.num_images for score in tasks.values()),
    )
    return {"overall": overall, **tasks}


def read_results(path: Path) -> list[Judgement]:
    """The scorer's results. Raises UserError with the line number for a line in another format."""
    found = []
    for i, line in enumerate(read_text(path, "the scorer's results").splitlines()):
        try:
            value = json.loads(line)
            judged = Judgement(value["tag"], value["prompt"], value["correct"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {i + 1}: not a result of GenEval ({error}).") from error
        if not isinstance(judged.correct, bool):
            raise UserError(f"{path}, line {i + 1}: correct is {judged.correct!r}.")
        found.append(judged)
    return found


def _task_score(prompts: dict[str, list[bool]]) -> TaskScore:
    images = [correct for answers in prompts.values() for correct in answers]
    error = standard_error([float(np.mean(answers)) for answers in prompts.values()])
    return TaskScore(float(np.mean(images)), error, len(images))


def _prompt(line: str, where: str) -> str:
    try:
        return str(json.loads(line)["prompt"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: not a line of evaluation_metadata.jsonl ({error}).") from error
