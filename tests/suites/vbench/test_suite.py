"""The suite: how many videos it asks for, what they are called, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from arvid.contracts import UserError
from arvid.suites.vbench.aggregate import DIMENSIONS
from arvid.suites.vbench.external import EXTERNAL, Scorer, score_external
from arvid.suites.vbench.sampling import sample_suite
from arvid.suites.vbench.suite import (
    Prompt,
    check_dimensions,
    load_rewritten,
    load_suite,
    present,
    takes,
)


@pytest.fixture
def published(shared: Path) -> tuple[Prompt, ...]:
    path = shared / "prompts/vbench/VBench_full_info.json"
    if not path.is_file():
        pytest.skip(f"needs {path.name}, which is not here")
    return load_suite(path)


def test_published_suite_asks_for_its_videos(published: tuple[Prompt, ...]) -> None:
    assert len(published) == 946
    everything = takes(published, DIMENSIONS)
    assert len({take.prompt.text for take in everything}) == 944
    assert len(everything) == len({take.file for take in everything}) == 869 * 5 + 75 * 25
    counts = {name: len(takes(published, [name])) for name in DIMENSIONS}
    assert counts["temporal_flickering"] == 75 * 25
    assert counts["human_action"] == counts["temporal_style"] == 500
    assert counts["dynamic_degree"] == counts["subject_consistency"] == 72 * 5
    assert counts["appearance_style"] == 90 * 5
    assert all(p.style for p in published if "appearance_style" in p.dimensions)


def test_rewritten_prompts_of_nova_cover_the_suite(
    published: tuple[Prompt, ...], shared: Path
) -> None:
    texts = load_rewritten(shared / "prompts/nova/vbench_dense.json", published)
    assert len(texts) == 944
    assert texts["alley"] != "alley"
    assert takes(published, ["scene"])[0].file == "alley-0.mp4"


def test_a_text_of_two_entries_is_one_set_of_videos(suite: tuple[Prompt, ...]) -> None:
    both = takes(suite, ["appearance_style", "aesthetic_quality"])
    assert [take.file for take in both] == [
        f"a blue circle, oil painting-{i}.mp4" for i in range(5)
    ]
    assert takes(suite, ["appearance_style"])[0].prompt.style == "oil painting"


def test_flickering_is_looked_at_in_the_order_of_names(suite: tuple[Prompt, ...]) -> None:
    names = [take.file for take in takes(suite, ["temporal_flickering"])]
    assert names == sorted(names)
    assert [take.index for take in takes(suite, ["temporal_flickering"])][:4] == [0, 1, 10, 11]
    assert len(takes(suite, ["temporal_flickering"], flickering_samples=5)) == 5


def test_nine_dimensions_are_left_to_the_package() -> None:
    assert EXTERNAL == (
        "motion_smoothness",
        "object_class",
        "multiple_objects",
        "human_action",
        "color",
        "spatial_relationship",
        "scene",
        "temporal_style",
        "overall_consistency",
    )
    with pytest.raises(UserError, match="no dimension 'sharpness'"):
        check_dimensions(["sharpness"])


def test_rewritings_are_read_in_three_forms(suite: tuple[Prompt, ...], tmp_path: Path) -> None:
    wanted = {prompt.text: f"long {i}" for i, prompt in enumerate(suite) if i != 3}
    (tmp_path / "object.json").write_text(json.dumps(wanted))
    pairs = [{"prompt": prompt, "dense_prompt": text} for prompt, text in wanted.items()]
    (tmp_path / "list.json").write_text(json.dumps(pairs))
    (tmp_path / "lines.txt").write_text("".join(f"long {i}\n" for i in range(len(suite))))
    for name in ("object.json", "list.json", "lines.txt"):
        assert load_rewritten(tmp_path / name, suite) == wanted


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"alley": "long"}', "3 prompts have no rewritten|4 prompts have no rewritten"),
        ("a.json", "[1]", "neither a JSON list"),
        ("a.txt", "one\ntwo\n", "has 2 lines and the suite 5"),
    ],
)
def test_wrong_rewritings_are_refused(
    suite: tuple[Prompt, ...], tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_rewritten(tmp_path / name, suite)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ("{}", "not VBench_full_info.json"),
        ('[{"prompt_en": "x"}]', "entry 0: .*'dimension'"),
        ('[{"prompt_en": "a/b", "dimension": ["scene"]}]', "cannot be the name"),
        ('[{"prompt_en": "a\\u0000", "dimension": ["scene"]}]', "cannot be the name"),
        ('[{"prompt_en": "a\\ud83d", "dimension": ["scene"]}]', "cannot be the name"),
        ('[{"prompt_en": "x", "dimension": ["sharpness"]}]', "no dimension 'sharpness'"),
        ('[{"prompt_en": "x", "dimension": ["appearance_style"]}]', "auxiliary_info"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "suite.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_suite(tmp_path / "suite.json")


def test_missing_videos_are_an_error_unless_allowed(
    suite: tuple[Prompt, ...], tmp_path: Path
) -> None:
    wanted = takes(suite, ["scene"])
    with pytest.raises(UserError, match="lacks 5 of 5"):
        present(wanted, tmp_path, allow_missing=True)
    (tmp_path / "alley-3.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"lacks 4 of 5 videos, e.g. 'alley-0.mp4'"):
        present(wanted, tmp_path)
    assert [take.index for take in present(wanted, tmp_path, allow_missing=True)] == [3]


def test_a_prompt_that_is_too_long_for_a_name_is_sampled_and_found(tmp_path: Path) -> None:
    suite = tmp_path / "suite.json"
    texts = ["a cat " * 60 + end for end in ("runs", "sleeps")]
    suite.write_text(
        json.dumps([{"prompt_en": text, "dimension": ["subject_consistency"]} for text in texts])
    )
    wanted = takes(load_suite(suite), ["subject_consistency"])
    assert len({take.file for take in wanted}) == 10
    assert all(len(take.file.encode()) <= 255 for take in wanted)
    with pytest.raises(UserError, match="lacks 10 of 10 videos"):
        present(wanted, tmp_path / "videos")
    video = np.zeros((2, 16, 16, 3), np.uint8)
    assert sample_suite(wanted, lambda text, seed: video, tmp_path / "videos", progress=False) == 10
    assert present(wanted, tmp_path / "videos") == wanted
    with pytest.raises(UserError, match="too long for a file name"):
        score_external(
            "scene",
            wanted,
            Scorer(python=Path("python")),
            suite=suite,
            videos=tmp_path / "videos",
            folder=tmp_path,
        )
