"""Sample, score and aggregate from the command line, with scripts that stand in for the benchmarks' scorers."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from arvid.commands import image_benchmarks as command
from arvid.contracts import UserError
from arvid.evaluation import records
from arvid.suites.image_benchmarks.geneval import TASKS

GENEVAL = """
import json, pathlib, sys
folder, _, out, _, detector = sys.argv[1:]
assert pathlib.Path(detector).is_dir()
with open(out, "w") as file:
    for image in sorted(pathlib.Path(folder).glob("*/samples/*.png")):
        asked = json.loads((image.parents[1] / "metadata.jsonl").read_text())
        judged = {"tag": asked["tag"], "prompt": asked["prompt"], "correct": image.stem == "0002"}
        file.write(json.dumps(judged) + "\\n")
"""
T2I = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[2])
answers = [{"question_id": int(p.stem[-6:]), "answer": int(p.stem[-1])} for p in (folder / "samples").iterdir()]
(folder / "annotation_blip").mkdir()
(folder / "annotation_blip/vqa_result.json").write_text(json.dumps(answers))
"""
DPG = """
import csv, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rows = list(csv.DictReader(open(given["--csv"])))[1:]
side, out = int(given["--resolution"]), pathlib.Path(given["--res-path"])
means = []
with open(out.with_name("results_detail.txt"), "w") as details:
    for image in sorted(pathlib.Path(given["--image-root-path"]).iterdir()):
        asked = [row for row in rows if row["item_id"] == image.stem]
        tiles = []
        for k in range(int(given["--pic-num"])):
            x, y = k % 2 * side, k // 2 * side
            judged = {}
            for row in asked:
                no = image.stem != "a" and (k + ord(image.stem) + int(row["proposition_id"])) % 3 == 0
                answer = "no" if no else "yes"
                details.write(f"{image}, {(x, y, x + side, y + side)}, {row['question_natural_language']}, {answer}\\n")
                parent = row["dependency"]
                judged[row["proposition_id"]] = answer == "yes" and (parent == "0" or judged[parent])
            tiles.append(sum(judged.values()) / len(judged))
        means.append(sum(tiles) / len(tiles))
out.write_text(f"DPG-Bench score: {100 * sum(means) / len(means)}\\n")
"""


def arvid_evaluate(suite: str, *arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser, suite)
    return command.run(parser.parse_args([str(x) for x in arguments]), suite)


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline of grey images in the place of diffusers'."""

    def load(name: str, dtype: str) -> Any:
        return lambda prompt, **_: SimpleNamespace(images=np.full((len(prompt), 8, 8, 3), 0.5))

    monkeypatch.setattr("arvid.evaluation.pipelines.load_pipeline", load)


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    path = tmp_path / "metadata.jsonl"
    lines = [{"tag": tag, "prompt": f"{tag} {i}"} for tag in TASKS for i in range(2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.usefixtures("pipeline")
def test_geneval_from_prompts_to_record(
    tmp_path: Path, metadata: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = tmp_path / "row"
    script(tmp_path / "geneval/evaluation/evaluate_images.py", GENEVAL)
    for shard in ("0/2", "1/2"):
        options = ("--pipeline", "grey", "--prompts", metadata, "--out", row, "--shard", shard)
        assert arvid_evaluate("geneval", "sample", *options) == 0
    score = ("score", row, "--scorer", tmp_path / "geneval", "--scorer-python", sys.executable)
    for _ in range(2):
        assert arvid_evaluate("geneval", *score, "--detector", tmp_path) == 0
    assert "not scored again" in capsys.readouterr().out
    assert arvid_evaluate("geneval", "aggregate", row) == 0
    assert "GenEval overall: 0.2500 ± 0.0000 (48)" in capsys.readouterr().out
    (record,) = records.load_run(row)
    assert (record.name, record.row, record.protocol_name) == ("grey", "reference", "geneval")
    assert [m.name for m in record.metrics][:2] == ["geneval-overall", "geneval-single-object"]
    (row / "geneval/00000/samples/0000.png").unlink()
    with pytest.raises(UserError, match="holds 47 images instead of 48"):
        arvid_evaluate("geneval", *score, "--detector", tmp_path)
    (row / "geneval/results.jsonl").write_text("")
    with pytest.raises(UserError, match="judges 0 images of the 48 sampled"):
        arvid_evaluate("geneval", "aggregate", row)


@pytest.mark.usefixtures("pipeline")
def test_t2i_compbench_from_prompts_to_record(tmp_path: Path) -> None:
    script(tmp_path / "t2i/BLIPvqa_eval/BLIP_vqa.py", T2I)
    (tmp_path / "shape_val.txt").write_text("a round box\na square ball\n")
    only = ("--category", "shape")
    where = ("--prompts", tmp_path, "--out", tmp_path / "row")
    arvid_evaluate("t2i-compbench", "sample", "--pipeline", "grey", *where, *only)
    scorer = ("--scorer", tmp_path / "t2i", "--scorer-python", sys.executable)
    arvid_evaluate("t2i-compbench", "score", tmp_path / "row", *scorer)
    arvid_evaluate("t2i-compbench", "aggregate", tmp_path / "row", "--name", "other")
    (record,) = records.load_run(tmp_path / "row")
    (metric,) = record.metrics
    assert (record.name, metric.name, metric.value, metric.spread) == ("other", "t2i-shape", 4.5, 0)


@pytest.mark.usefixtures("pipeline")
def test_dpg_bench_from_prompts_to_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"a prompt called {name}\n")
    header = "item_id,proposition_id,dependency,tuple,question_natural_language\n"
    rows = [
        f'{name},{q},{max(q - 1, 0)},entity - whole (x),"Is {q}, so to speak, in {name}?"\n'
        for name in ("first", "a", "b", "c")
        for q in (1, 2, 3)
    ]
    script(tmp_path / "ella/dpg_bench/dpg_bench.csv", header + "".join(rows))
    script(tmp_path / "ella/dpg_bench/compute_dpg_bench.py", DPG)
    row, questions = tmp_path / "row", tmp_path / "ella/dpg_bench/dpg_bench.csv"
    where = ("--prompts", tmp_path, "--out", row)
    arvid_evaluate("dpg-bench", "sample", "--pipeline", "grey", *where)
    scorer = ("--scorer", tmp_path / "ella", "--scorer-python", sys.executable)
    arvid_evaluate("dpg-bench", "score", row, *scorer)
    arvid_evaluate("dpg-bench", "aggregate", row, "--questions", questions)
    # Of b the first no is, tile by tile, to question 1, 3, 2, 1 and of c to 3, 2, 1, 3: what comes after falls too.
    tiles = {"a": (1, 1, 1, 1), "b": (0, 2 / 3, 1 / 3, 0), "c": (2 / 3, 1 / 3, 0, 2 / 3)}
    (record,) = records.load_run(row)
    assert [m.name for m in record.metrics] == ["dpg", "dpg-l1-entity", "dpg-l2-entity-whole"]
    assert record.metrics[0].value == pytest.approx(100 * sum(map(sum, tiles.values())) / 12)
    assert record.metrics[1].value == pytest.approx(100 * 7 / 9)
    # The first item of the question file cannot be scored: said, not hidden.
    questions.write_text(header + "".join(rows[3:]))
    with pytest.raises(UserError, match="but its answers give"):
        arvid_evaluate("dpg-bench", "aggregate", row, "--questions", questions)
    assert "as in the scorer: a." in capsys.readouterr().out
    details = row / "dpg-bench/results_detail.txt"
    details.write_text("\n".join(details.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError, match=r"lacks answers for 1 of 3 images, e\.g\. c"):
        arvid_evaluate("dpg-bench", "aggregate", row, "--questions", questions)


@pytest.mark.usefixtures("pipeline")
def test_scorers_that_cannot_work_are_errors_in_words(tmp_path: Path, metadata: Path) -> None:
    row = tmp_path / "row"
    arvid_evaluate("geneval", "sample", "--pipeline", "x", "--prompts", metadata, "--out", row)
    score = ("score", row, "--detector", tmp_path, "--scorer", tmp_path, "--scorer-python")
    with pytest.raises(UserError, match="nowhere: there is no such Python"):
        arvid_evaluate("geneval", *score, tmp_path / "nowhere")
    with pytest.raises(UserError, match="--scorer names a checkout of https"):
        arvid_evaluate("geneval", *score, sys.executable)
    script(tmp_path / "evaluation/evaluate_images.py", "raise SystemExit(3)")
    with pytest.raises(UserError, match=r"failed \(exit code 3\)"):
        arvid_evaluate("geneval", *score, sys.executable)
    script(tmp_path / "evaluation/evaluate_images.py", "")
    with pytest.raises(UserError, match="ended without a complete"):
        arvid_evaluate("geneval", *score, sys.executable)


def test_checkpoint_becomes_a_trained_row_with_its_setting(
    tmp_path: Path, metadata: Path, trained_run: Path
) -> None:
    metadata.write_text("".join(metadata.read_text().splitlines(keepends=True)[:1]))
    where = ("--prompts", metadata, "--out", tmp_path / "row")
    arvid_evaluate("geneval", "sample", "--checkpoint", trained_run, "--temperature", 0.5, *where)
    benchmark = command.GenEval(tmp_path / "row")
    record = command.write_record(benchmark, [])
    assert (record.name, record.row, record.seed) == ("next_block", "trained", 42)
    assert record.factors["paradigm"] == "next_block"
    assert record.checkpoint_sha256
    assert record.protocol["num_images"] == 4


@pytest.mark.parametrize("suite", command.SUITES)
def test_help_shows_examples(suite: str, capsys: pytest.CaptureFixture[str]) -> None:
    for action in ((), ("sample",), ("score",), ("aggregate",)):
        with pytest.raises(SystemExit):
            arvid_evaluate(suite, *action, "--help")
        assert f"arvid evaluate {suite} aggregate" in capsys.readouterr().out


def test_shards_are_counted_from_zero(tmp_path: Path) -> None:
    for shard in ("2/2", "1", "a/b"):
        with pytest.raises(SystemExit):
            arvid_evaluate("geneval", "sample", "--prompts", "x", "--out", "y", "--shard", shard)
