"""GenEval's numbers from fabricated judgements."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from arvid.contracts import UserError
from arvid.suites.image_benchmarks.geneval import TASKS, Judgement, aggregate, read_results

CORRECT = {
    task: [[True] * k + [False] * (4 - k) for k in range(5)][: i + 1]
    for i, task in enumerate(TASKS[:5])
}
"""One prompt more for each task, with one correct image more in each prompt."""
CORRECT["color_attr"] = [[True, True, False, True]]


def judgements() -> list[Judgement]:
    return [
        Judgement(task, f"{task} {i}", correct)
        for task, prompts in CORRECT.items()
        for i, images in enumerate(prompts)
        for correct in images
    ]


def test_overall_is_the_plain_mean_over_tasks_of_the_share_of_correct_images() -> None:
    scores = aggregate(judgements())
    by_task = [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 3 / 4]
    assert [scores[task].value for task in TASKS] == pytest.approx(by_task)
    assert scores["overall"].value == pytest.approx(np.mean(by_task))
    images = [judged.correct for judged in judgements()]
    assert scores["overall"].value != pytest.approx(np.mean(images))  # not over images
    assert scores["overall"].num_images == len(images)
    assert list(scores) == ["overall", *TASKS]


def test_error_is_that_over_prompts() -> None:
    scores = aggregate(judgements())
    assert scores["two_object"].standard_error == pytest.approx(np.std([0, 1 / 4], ddof=1) / 2**0.5)
    assert scores["color_attr"].standard_error is None
    assert scores["overall"].standard_error is None  # as long as one task's is unknown
    more = [*judgements(), *(Judgement(t, "x", False) for t in TASKS)]
    errors = aggregate(more)
    total = sum((errors[task].standard_error or 0) ** 2 for task in TASKS) ** 0.5 / 6
    assert errors["overall"].standard_error == pytest.approx(total)


def test_a_missing_or_strange_task_is_refused() -> None:
    some = [judged for judged in judgements() if judged.task != "counting"]
    with pytest.raises(UserError, match="mean of single_object"):
        aggregate(some)
    with pytest.raises(UserError, match="shapes"):
        aggregate([*judgements(), Judgement("shapes", "", True)])
    with pytest.raises(UserError, match="nothing"):
        aggregate([])


def test_damaged_results_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    good = json.dumps({"tag": "colors", "prompt": "a", "correct": True, "reason": ""})
    path.write_text(good + "\n")
    assert read_results(path) == [Judgement("colors", "a", True)]
    for bad in ("{", '{"tag": "colors"}', good.replace("true", "1"), "[]"):
        path.write_text(f"{good}\n{bad}\n")
        with pytest.raises(UserError, match="line 2"):
            read_results(path)
    with pytest.raises(UserError, match=r"none.jsonl: the scorer's results cannot be read"):
        read_results(tmp_path / "none.jsonl")
