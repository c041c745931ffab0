"""Images land in each benchmark's layout, whatever was there before and however many processes draw them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from arvid.contracts import UserError
from arvid.suites.checkpoint_sampler import CheckpointSampler
from arvid.suites.image_benchmarks.dpg_bench import DpgBench
from arvid.suites.image_benchmarks.geneval import GenEval
from arvid.suites.image_benchmarks.samplers import PipelineSampler, as_images
from arvid.suites.image_benchmarks.sampling import rewritten, sample_part
from arvid.suites.image_benchmarks.t2i_compbench import CATEGORIES, T2ICompBench
from arvid.suites.manifest import MANIFEST
from arvid.suites.prompts import read_rewritten
from arvid.training.generator_module import load_generator

MODEL = {"kind": "pipeline", "name": "painter"}


def draw(part: Any, sampler: Any, **options: Any) -> None:
    sample_part(part, sampler, model=MODEL, progress=False, **options)


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def colour_of(path: Path) -> list[int]:
    return cv2.imread(str(path))[0, 0, ::-1].tolist()


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    lines = [
        json.dumps({"tag": "counting", "include": [], "prompt": f"a photo of {n} cats"})
        for n in ("two", "three", "four")
    ]
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_geneval_has_a_folder_for_each_prompt(tmp_path: Path, metadata: Path, painter: Any) -> None:
    (part,) = GenEval(tmp_path / "row").parts(metadata)
    draw(part, painter)
    folder = tmp_path / "row/geneval"
    expected = [f"{i:05d}/samples/{k:04d}.png" for i in range(3) for k in range(4)]
    assert list(pictures(folder)) == expected
    lines = metadata.read_text().splitlines()
    for i, line in enumerate(lines):
        assert json.loads((folder / f"{i:05d}/metadata.jsonl").read_text()) == json.loads(line)
    # every prompt begins with the same seed, 42
    colour = painter.colour("a photo of three cats", 44)
    assert colour_of(folder / "00001/samples/0002.png") == colour.tolist()


def test_t2i_compbench_numbers_the_images_of_a_category(tmp_path: Path, painter: Any) -> None:
    (tmp_path / "color_val.txt").write_text("a red cup\tseen\na blue car.\n\n")
    (part,) = T2ICompBench(tmp_path, categories=["color"]).parts(tmp_path)
    draw(part, painter)
    names = list(pictures(tmp_path / "t2i-compbench/color/samples"))
    prompts = ["a blue car."] * 10 + ["a red cup"] * 10
    numbers = [*range(10, 20), *range(10)]
    assert names == [f"{p}_{n:06d}.png" for p, n in zip(prompts, numbers, strict=True)]


def test_dpg_bench_puts_four_images_into_one_file(tmp_path: Path, painter: Any) -> None:
    (tmp_path / "7.txt").write_text("a long prompt\n")
    (part,) = DpgBench(tmp_path).parts(tmp_path)
    draw(part, painter)
    picture = cv2.imread(str(tmp_path / "dpg-bench/images/7.png"))[..., ::-1]
    assert picture.shape == (16, 16, 3)
    corners = [(0, 0), (0, 8), (8, 0), (8, 8)]
    for seed, (y, x) in enumerate(corners, start=42):
        tile = picture[y : y + 8, x : x + 8]
        assert (tile == painter.colour("a long prompt", seed)).all()


def test_published_prompt_lists_are_as_long_as_published(shared: Path, tmp_path: Path) -> None:
    prompts = shared / "prompts"
    if not prompts.is_dir():
        pytest.skip("needs the prompt lists, which are not here")
    (part,) = GenEval(tmp_path).parts(prompts / "geneval/evaluation_metadata.jsonl")
    assert sum(b.num_images for b in part.batches) == 553 * 4
    dense = rewritten(part, read_rewritten(prompts / "nova/geneval_dense.json"))
    assert dense.batches[0].prompt.startswith("The style of the image")
    assert [b.files for b in dense.batches] == [b.files for b in part.batches]
    parts = T2ICompBench(tmp_path).parts(prompts / "t2i_compbench")
    assert len(parts) == len(CATEGORIES) == 8
    for category in parts:
        names = {path.name for batch in category.batches for path in batch.files}
        assert len(names) == 3000


def test_any_number_of_processes_draws_the_same_images(
    tmp_path: Path, metadata: Path, painter: Any
) -> None:
    drawn = []
    for num in (1, 2, 3):
        (part,) = GenEval(tmp_path / f"{num}").parts(metadata)
        for index in range(num):
            draw(part, painter, shard=(index, num))
        drawn.append(pictures(part.folder))
    assert len(drawn[0]) == 12
    assert drawn[0] == drawn[1] == drawn[2]


def test_interrupted_sampling_goes_on_where_it_stopped(
    tmp_path: Path, metadata: Path, painter: Any
) -> None:
    (part,) = GenEval(tmp_path / "row").parts(metadata)
    draw(part, painter)
    before = pictures(part.folder)
    (part.folder / "00001/samples/0003.png").unlink()
    painter.prompts.clear()
    draw(part, painter)
    assert painter.prompts == ["a photo of three cats"]
    assert pictures(part.folder) == before


def test_another_sampling_is_not_mixed_in(tmp_path: Path, metadata: Path, painter: Any) -> None:
    (part,) = GenEval(tmp_path / "row").parts(metadata)
    draw(part, painter)
    with pytest.raises(UserError, match=r"other samples \(seed differ"):
        draw(part, painter, seed=1)
    with pytest.raises(UserError, match=r"\(model differ"):
        sample_part(part, painter, model={"name": "other"}, progress=False)
    fewer = dataclasses.replace(part, batches=part.batches[:2])
    with pytest.raises(UserError, match="prompts_sha256 differ"):
        draw(fewer, painter)
    (part.folder / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        draw(part, painter)


def test_images_of_another_kind_are_refused(tmp_path: Path, metadata: Path, painter: Any) -> None:
    (part,) = GenEval(tmp_path / "row").parts(metadata)
    with pytest.raises(UserError, match=r"float32 .* instead of 4 uint8 images"):
        draw(part, lambda prompts, seeds: painter(prompts, seeds).astype(np.float32))
    (tmp_path / "7.txt").write_text("a long prompt\n")
    (part,) = DpgBench(tmp_path).parts(tmp_path)
    with pytest.raises(UserError, match="not a square number of square images"):
        draw(part, lambda prompts, seeds: painter(prompts, seeds)[:, 1:])


def test_prompt_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "color_val.txt"
    for prompt in ("and/or", "snake_case", "x" * 201):
        bad.write_text(f"{prompt}\n")
        with pytest.raises(UserError, match="cannot be part of a file name"):
            T2ICompBench(tmp_path, categories=["color"]).parts(tmp_path)
    with pytest.raises(UserError, match=r"shape_val.txt: the prompt list cannot be read"):
        T2ICompBench(tmp_path, categories=["shape"]).parts(tmp_path)
    with pytest.raises(UserError, match="line 1: not a line of evaluation_metadata"):
        GenEval(tmp_path).parts(bad)
    with pytest.raises(UserError, match="holds no prompts"):
        DpgBench(tmp_path).parts(tmp_path / "nowhere")
    (part,) = DpgBench(tmp_path).parts(tmp_path)
    with pytest.raises(UserError, match="1 of 1 prompts have no rewritten text"):
        rewritten(part, {})
    with pytest.raises(
        UserError, match=r"color_val\.txt: the file of rewritten prompts is not JSON"
    ):
        read_rewritten(bad)
    bad.write_text('{"a": ["b"]}'.replace("{", "[{").replace("}", "}]"))
    with pytest.raises(UserError, match="neither a JSON list of objects"):
        read_rewritten(bad)


def test_pipeline_gets_a_generator_for_each_image() -> None:
    def pipeline(**given: Any) -> SimpleNamespace:
        asked.append(given)
        noise = [np.float32(g.initial_seed() / 255) for g in given["generator"]]
        return SimpleNamespace(images=np.stack([np.full((4, 4, 3), x) for x in noise]))

    asked: list[dict[str, Any]] = []
    sampler = PipelineSampler(pipeline, {"num_inference_steps": 2})
    images = sampler(["a", "a"], [7, 8])
    assert images.dtype == np.uint8
    assert images[:, 0, 0, 0].tolist() == [7, 8]
    assert asked[0]["prompt"] == ["a", "a"]
    assert (asked[0]["num_inference_steps"], asked[0]["output_type"]) == (2, "np")
    broken = PipelineSampler(lambda **_: SimpleNamespace(images=np.full((1, 4, 4, 3), np.nan)))
    with pytest.raises(UserError, match="not finite"):
        broken(["a"], [0])


def test_checkpoint_draws_clips_of_one_frame(trained_run: Path) -> None:
    clips = CheckpointSampler(load_generator(trained_run), num_frames=1)
    prompts = ["a small red square moves left"] * 2
    images = as_images(clips)(prompts, [3, 4])
    assert (images.shape, images.dtype) == ((2, *clips.model.clip_shape[1:], 3), np.uint8)
    assert (images == clips(prompts, 3)[:, 0]).all()
