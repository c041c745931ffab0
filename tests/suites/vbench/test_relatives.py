"""VBench-I2V, VBench-Long and VBench-2.0: totals, files, and the way from sampling to the record."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from arvid.commands import vbench_relatives as command
from arvid.contracts import UserError
from arvid.data.video import read_video, write_video
from arvid.evaluation import records
from arvid.suites.vbench import results
from arvid.suites.vbench.aggregate import aggregate
from arvid.suites.vbench.relative_suite import (
    load_entries,
    load_relative_texts,
    nearest_ratio,
    relative_takes,
)
from arvid.suites.vbench.relatives import I2V, LONG, RELATIVES, V2, Relative

# Made-up scores in the order of the dimensions (as many as VBench-2.0 has), and the totals that VBench's scripts print
# for them: scripts/cal_i2v_final_score.py, VBench-2.0/scripts/cal_final_score.py, scripts/cal_final_score.py (45e79ec).
SCORES = (
    *(
        0.8444,
        0.758,
        0.4206,
        0.2589,
        0.5113,
        0.4049,
        0.7838,
        0.3033,
        0.4766,
        0.5834,
        0.9081,
        0.5047,
    ),
    *(0.2818, 0.7558, 0.6184, 0.2505, 0.9097, 0.9828),
)
TOTALS = {
    "vbench-i2v": {
        "quality": 0.11074877043126316,
        "i2v": 0.4840180721756096,
        "total": 0.29738342130343637,
    },
    "vbench-2": {
        "creativity": 0.8012,
        "commonsense": 0.33975,
        "controllability": 0.5673428571428571,
        "human_fidelity": 0.5141,
        "physics": 0.69035,
        "total": 0.5825485714285714,
    },
    "vbench-long": {
        "quality": 0.12886691865328878,
        "semantic": 0.9064912927198336,
        "total": 0.28439179346659776,
    },
}
LONG_PROMPT = "a very long story, " * 20
LISTS: dict[str, list[dict[str, Any]]] = {
    "vbench-i2v": [
        {
            "prompt_en": "a red square",
            "dimension": ["i2v_subject", "dynamic_degree", "temporal_flickering"],
            "image_name": "a red square.jpg",
        },
        {
            "prompt_en": "a square, camera pans left",
            "dimension": ["camera_motion"],
            "image_name": "a red square.jpg",
        },
    ],
    "vbench-2": [
        {"prompt_en": "a red square", "dimension": ["Diversity"]},
        {"prompt_en": "a red square", "dimension": ["Mechanics"], "auxiliary_info": "x"},
        {"prompt_en": LONG_PROMPT, "dimension": ["Complex_Plot"]},
    ],
    "vbench-long": [
        {"prompt_en": "a red square", "dimension": ["subject_consistency", "dynamic_degree"]},
        {"prompt_en": "a still cup", "dimension": ["temporal_flickering"]},
    ],
}


@pytest.mark.parametrize("name", TOTALS)
def test_totals_are_those_of_vbenchs_scripts(name: str) -> None:
    rules = RELATIVES[name].rules
    totals = aggregate(dict(zip(rules.dimensions, SCORES, strict=False)), rules)
    assert {**totals.groups, "total": totals.total} == pytest.approx(TOTALS[name], abs=1e-14)
    lacking = aggregate({}, rules)
    assert len(lacking.missing) == len(rules.dimensions)
    with pytest.raises(ValueError, match=f"not dimensions of {rules.title}: sharpness"):
        aggregate({"sharpness": 1.0}, rules)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of VBench's repository with small lists, images of two ratios, and code that only counts videos."""
    root = tmp_path / "VBench"
    for relative in RELATIVES.values():
        path = root / relative.prompts
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(LISTS[relative.name]))
    (root / "vbench2_beta_long/configs").mkdir()
    for ratio, size in (("1-1", (40, 40)), ("16-9", (36, 64))):
        folder = root / "vbench2_beta_i2v/data/crop" / ratio
        folder.mkdir(parents=True)
        red = np.full((*size, 3), (0, 0, 200), np.uint8)  # OpenCV has blue first
        cv2.imwrite(str(folder / "a red square.jpg"), red)
    for module, name in (
        ("vbench2_beta_i2v/__init__.py", "VBenchI2V"),
        ("vbench2_beta_long/__init__.py", "VBenchLong"),
        ("VBench-2.0/vbench2/__init__.py", "VBench2"),
    ):
        (root / module).write_text(CODE.replace("NAME", name))
    return root


CODE = """
import json, os
class NAME:
    def __init__(self, device, suite, out):
        self.device, self.suite, self.out = device, suite, out
    def evaluate(self, videos_path, name, dimension_list, **options):
        assert self.device == "device:cpu" and "prompt_en" in open(self.suite).read()
        entries = os.listdir(videos_path)
        if "NAME" == "VBenchLong":
            os.makedirs(os.path.join(videos_path, "a split"), exist_ok=True)
            entries = os.listdir(videos_path)
            assert options["mode"] == "long_vbench_standard" and options["dev_flag"]
            assert os.path.isdir(os.path.dirname(options["slow_fast_eval_config"]))
            assert entries[-1] == "a split"
        if "NAME" == "VBenchI2V":
            assert os.path.isdir("vbench2_beta_i2v/data/crop/" + options["resolution"])
        rows = [{"video_path": os.path.join(videos_path, f), "video_results": 0.5}
                for f in entries if f.endswith(".mp4")]
        result = [0.25, rows]
        if dimension_list == ["camera_motion"]:  # whose score by type is NaN without a video of a type
            result = [0.25, {"pan_left": 0.25, "zoom_in": float("nan")}, rows]
        with open(os.path.join(self.out, name + "_eval_results.json"), "w") as file:
            json.dump({dimension_list[0]: result}, file)
"""
TORCH = """
device = lambda name: "device:" + name
class cuda:
    is_available = staticmethod(lambda: False)
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter with a made-up torch."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "torch.py").write_text(TORCH)
    path = tmp_path / "python"
    path.write_text(
        f"#!{sys.executable}\nimport os, sys\nos.environ['PYTHONPATH'] = {str(site)!r}\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
    )
    path.chmod(0o755)
    return path


def files(relative: Relative, repository: Path, *dimensions: str) -> list[str]:
    entries = load_entries(repository / relative.prompts, relative)
    return [take.file for take in relative_takes(entries, relative, dimensions)]


def test_files_are_named_and_counted_as_each_benchmark_does(repository: Path) -> None:
    assert files(I2V, repository, "i2v_subject", "camera_motion") == [
        *(f"a red square-{i}.mp4" for i in range(5)),
        *(f"a square, camera pans left-{i}.mp4" for i in range(5)),
    ]
    assert files(V2, repository, "Diversity", "Mechanics") == [
        *(f"Diversity/a red square-{i}.mp4" for i in range(20)),
        *(f"Mechanics/a red square-{i}.mp4" for i in range(3)),
    ]
    assert files(V2, repository, "Complex_Plot")[0] == f"Complex_Plot/{LONG_PROMPT[:180]}-0.mp4"
    assert len(files(LONG, repository, "temporal_flickering")) == 5
    with pytest.raises(UserError, match="no dimension 'temporal_flickering' here"):
        files(I2V, repository, "temporal_flickering")


def test_every_video_has_its_own_seed(repository: Path) -> None:
    entries = load_entries(repository / V2.prompts, V2)
    takes = relative_takes(entries, V2, V2.rules.dimensions)
    seeds = {take.seed(run) for take in takes for run in (0, 1)}
    assert len(seeds) == 2 * len(takes) == 2 * 26
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_nearest_ratio_is_chosen(repository: Path) -> None:
    images = repository / "vbench2_beta_i2v/data/crop"
    assert [nearest_ratio(images, *size) for size in ((32, 32), (480, 768), (256, 300))] == [
        "1-1",
        "16-9",
        "1-1",
    ]
    with pytest.raises(UserError, match="has no folders of cropped images"):
        nearest_ratio(repository, 32, 32)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "not VBench-I2V's list of prompts"),
        ([{"prompt_en": "a", "dimension": ["i2v_subject"]}], "entry 0.*image_name"),
        (
            [{"prompt_en": "a/b", "dimension": [], "image_name": "a"}],
            "cannot be the name of a file",
        ),
        (
            [{"prompt_en": "a\ud83d", "dimension": [], "image_name": "a"}],
            "cannot be the name of a file",
        ),
        ([{"prompt_en": "a", "dimension": ["color"], "image_name": "a"}], "none of .* VBench-I2V"),
    ],
)
def test_other_lists_are_refused(tmp_path: Path, entries: Any, message: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=message):
        load_entries(path, I2V)


def run(suite: str, *arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser, suite)
    return command.run(parser.parse_args([str(argument) for argument in arguments]), suite)


def test_images_are_the_first_frames_and_scores_become_a_record(
    trained_run: Path, repository: Path, python: Path, tmp_path: Path
) -> None:
    row = tmp_path / "row"
    common = (row, "--repository", repository)
    chosen = ("--dimension", "i2v_subject", "--dimension", "camera_motion")
    sample = ("sample", *common, *chosen, "--checkpoint", trained_run, "--frames", 5)
    rewritten = tmp_path / "texts.json"
    rewritten.write_text(json.dumps({entry["prompt_en"]: "b" for entry in LISTS["vbench-i2v"]}))
    for shard in ("0/2", "1/2"):
        assert run("vbench-i2v", *sample, "--rewritten", rewritten, "--shard", shard) == 0
    videos = sorted((row / "vbench-i2v/videos").iterdir())
    assert len(videos) == 10
    # the tokenizer's reconstruction of the red image
    red, green, blue = read_video(videos[0]).frames[0].reshape(-1, 3).mean(0)
    assert red > 120 > max(green, blue) + 40
    assert run("vbench-i2v", "score", *common, *chosen, "--vbench-python", python) == 0
    assert run("vbench-i2v", "aggregate", row) == 0
    record = records.load(row / "evaluation/vbench-i2v.json")
    assert (record.row, record.protocol_name) == ("trained", "vbench-i2v")
    by_name = {metric.name: metric for metric in record.metrics}
    assert by_name["vbench-i2v-camera-motion"].count == 10
    assert by_name["vbench-i2v-i2v-subject"].value == 25
    expected = 100 * (0.1 * 0.25 + (0.25 - 0.1462) / (1 - 0.1462) - 0.2615 / (1 - 0.2615)) / 2.1
    assert by_name["vbench-i2v-i2v-incomplete"].value == pytest.approx(expected)
    assert (
        by_name["vbench-i2v-total-incomplete"].label == "VBench-I2V total (incomplete: 7 missing)"
    )


@pytest.mark.parametrize(("relative", "dimension"), [(LONG, "dynamic_degree"), (V2, "Mechanics")])
def test_other_peoples_videos_are_scored(
    relative: Relative, dimension: str, repository: Path, python: Path, tmp_path: Path
) -> None:
    videos = tmp_path / "theirs"
    wanted = files(relative, repository, dimension)
    for file in wanted[1:]:
        write_video(videos / file, np.zeros((2, 16, 16, 3), np.uint8), 8)
    row = tmp_path / "row"
    score = ("score", row, "--repository", repository, "--videos", videos)
    score = (*score, "--dimension", dimension, "--vbench-python", python)
    with pytest.raises(UserError, match=f"lacks 1 of {len(wanted)} videos"):
        run(relative.name, *score)
    assert run(relative.name, *score, "--allow-missing") == 0
    (found,) = results.load_all(row / relative.name / "scores", relative.rules).values()
    assert (found.score, len(found.videos)) == (0.25, len(wanted) - 1)
    assert run(relative.name, "aggregate", row) == 0
    assert records.load(row / f"evaluation/{relative.name}.json").row == "reference"


def test_what_is_missing_is_named(repository: Path, tmp_path: Path) -> None:
    entries = load_entries(repository / I2V.prompts, I2V)
    texts = tmp_path / "texts.json"
    texts.write_text('{"a red square": "a red square on a table"}')
    with pytest.raises(UserError, match="1 prompts have no rewritten text"):
        load_relative_texts(texts, entries)
    score = ("score", tmp_path / "row", "--repository", repository, "--vbench-python", "python")
    with pytest.raises(UserError, match="Give the ratio of their images"):
        run("vbench-i2v", *score)
    row = tmp_path / "row"
    both = ("--dimension", "Mechanics", "--dimension", "Thermotics")
    score = ("score", row, "--repository", repository, "--vbench-python", "python", *both)
    for file in files(V2, repository, "Mechanics"):
        write_video(row / "vbench-2/videos" / file, np.zeros((2, 16, 16, 3), np.uint8), 8)
    with pytest.raises(UserError, match="The list of prompts has none of this dimension"):
        run("vbench-2", *score)  # before "python" is called for the first dimension


@pytest.mark.parametrize("path", [None, ["a-0.mp4"], 3])
def test_results_without_paths_of_videos_have_no_standard_error(path: Any, tmp_path: Path) -> None:
    scores = tmp_path / "vbench-2/scores"
    scores.mkdir(parents=True)
    value = {"Mechanics": [0.5, [{"video_path": path, "video_results": 0.5}]]}
    (scores / "a_eval_results.json").write_text(json.dumps(value))
    assert run("vbench-2", "aggregate", tmp_path) == 0
    found = records.load(tmp_path / "evaluation/vbench-2.json").metrics[0]
    assert (found.value, found.spread) == (50, None)
