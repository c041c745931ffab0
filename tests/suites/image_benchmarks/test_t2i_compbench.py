"""T2I-CompBench's numbers from fabricated answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arvid.contracts import UserError
from arvid.suites.image_benchmarks.t2i_compbench import (
    BLIP,
    CATEGORIES,
    CLIP,
    JUDGES,
    SPATIAL,
    T2ICompBench,
    read_answers,
    three_in_one,
)


def write_answers(folder: Path, answers: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    entries = [{"question_id": i, "answer": answer} for i, answer in enumerate(answers)]
    (folder / "vqa_result.json").write_text(json.dumps(entries))


def test_category_is_the_mean_answer_with_the_error_over_prompts(tmp_path: Path) -> None:
    folder = tmp_path / "t2i-compbench/color"
    (folder / "samples").mkdir(parents=True)
    answers = ["0.2500"] * 10 + ["0.7500"] * 10  # BLIP's are strings
    write_answers(folder / "annotation_blip", answers)
    (metric,) = T2ICompBench(tmp_path).metrics()
    assert (metric.name, metric.count) == ("t2i-color", 20)
    assert metric.value == pytest.approx(0.5)
    assert metric.spread == pytest.approx(np.std([0.25, 0.75], ddof=1) / 2**0.5)
    write_answers(folder / "annotation_blip", answers[:-1])
    with pytest.raises(UserError, match="10 for each prompt"):
        T2ICompBench(tmp_path).metrics()


def test_three_in_one_takes_the_judges_of_the_prompts_list() -> None:
    judged = {
        BLIP: np.repeat([0.2, 0.4, 0.6], 10),
        SPATIAL: np.repeat([0.8, 0.0, 0.3], 10),
        CLIP: np.repeat([0.5, 0.6, 0.9], 10),
    }
    judged[BLIP][0] = 1.0  # image by image, not prompt by prompt
    prompts = ["The Cat is on top of the mat.", "A man runs. He is tall.", "the rest"]
    spatial, action = (
        ["the cat is on top of the mat"],
        ["A MAN RUNS", "the cat is on top of the mat."],
    )
    scores = three_in_one(judged, prompts, spatial, action)
    expected = np.repeat([(0.2 + 0.8) / 2, (0.4 + 0.6) / 2, (0.6 + 0.3 + 0.9) / 3], 10)
    expected[0] = (1.0 + 0.8) / 2
    assert scores == pytest.approx(expected)
    with pytest.raises(UserError, match="30 images were judged, but 2 prompts have 20"):
        three_in_one(judged, prompts[:2], spatial, action)


def test_complex_reads_three_judges_and_three_lists(tmp_path: Path) -> None:
    folder = tmp_path / "t2i-compbench/complex"
    (folder / "samples").mkdir(parents=True)
    for judge, value in zip(CATEGORIES["complex"], (0.1, 0.2, 0.6), strict=True):
        write_answers(folder / JUDGES[judge][2], [value] * 20)
    with pytest.raises(UserError, match="needs --prompts"):
        T2ICompBench(tmp_path).metrics()
    (tmp_path / "complex_val.txt").write_text("one.\ntwo.\n")
    (tmp_path / "complex_val_spatial.txt").write_text("one.\n")
    (tmp_path / "complex_val_action.txt").write_text("")
    (metric,) = T2ICompBench(tmp_path, prompt_lists=tmp_path).metrics()
    assert metric.value == pytest.approx(((0.1 + 0.2) / 2 + (0.1 + 0.2 + 0.6) / 3) / 2)
    write_answers(folder / JUDGES[CLIP][2], [0.6] * 10)
    with pytest.raises(UserError, match=r"CLIP_similarity.py judged 10 images of 20"):
        T2ICompBench(tmp_path, prompt_lists=tmp_path).metrics()


def test_answers_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    entries = [{"question_id": 1, "answer": 0.5}, {"question_id": 0, "answer": "0.25"}]
    path = tmp_path / "vqa_result.json"
    path.write_text(json.dumps(entries))
    assert read_answers(tmp_path).tolist() == [0.25, 0.5]
    bad = {
        "not 0 to 1, each once": [entries[0], entries[0]],
        "not finite": [{"question_id": 0, "answer": "nan"}],
        "not a list of question_id": [{"question_id": 0}],
        "each once": [],
    }
    for message, content in bad.items():
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            read_answers(tmp_path)
    with pytest.raises(UserError, match="holds no images"):
        T2ICompBench(tmp_path).metrics()
