"""NOVA's tables and figures at tiny size: every script runs, writes what it says, and has the paper's numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import pytest

from arvid.cli import main
from arvid.contracts import UserError
from arvid.data.sprites import Sprites
from arvid.data.video import write_video
from arvid.evaluation.records import EVALUATION_FOLDER, MetricValue, ResultRecord, save
from arvid.experiments import variants
from arvid.experiments.side_by_side import Job

FOLDER = Path(__file__).parents[2] / "benchmarks/nova"
TINY = (
    *("--size=debug", "--num-clips=2", "--trainer.accelerator=cpu", "--trainer.max_steps=2"),
    *("--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1", "--data.clips_per_step=2"),
    "--model.init_args.sampling.diffusion_steps=2",
)
FEW = [f"--data.{part}.init_args.num_clips={n}" for part, n in (("train", 4), ("val", 8))]


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trainings in this process, few sets of tokens, no weights that happen to be there."""

    def run_here(jobs: Sequence[Job], logs: Path) -> None:
        sets = "--model.init_args.paradigm.init_args.num_sets=2"
        for job in jobs:
            assert main([*job.arguments, sets]) == 0

    monkeypatch.setattr(variants, "run_side_by_side", run_here)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    monkeypatch.setenv("ARVID_WEIGHTS", str(tmp_path / "nothing"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NOVA of two steps on sprites."""
    folder = tmp_path_factory.mktemp("runs") / "nova"
    configs = [f"--config={c}" for c in ("settings/sprites", "paradigms/nova", "sizes/debug")]
    options = [o for o in TINY if not o.startswith(("--size", "--num-clips"))]
    sets = "--model.init_args.paradigm.init_args.num_sets=2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARVID_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert main(["fit", *configs, *options, *FEW, sets, f"--run={folder}"]) == 0
    return folder


def bench(name: str, out: Path, *arguments: str) -> tuple[str, dict[str, object]]:
    """Run a script; its page and its results."""
    assert main(["bench", f"nova/{name}", f"--out={out}", *arguments]) == 0
    return (out / "table.md").read_text(), json.loads((out / "results.json").read_text())


def sheet_height(*, clips: int, rows: int) -> int:
    """Rows of pixels: the frame numbers, then for each clip its prompt and 96 pixels for each row, gaps of 4."""
    return 20 + clips * (24 + rows * 100 - 4) + (clips - 1) * 4


def height(picture: Path) -> int:
    """In pixels."""
    read = cv2.imread(str(picture))
    assert read is not None
    return read.shape[0]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that cannot be done says."""
    capsys.readouterr()
    assert main(["bench", *arguments]) == 2
    return capsys.readouterr().err


def test_tam(tmp_path: Path) -> None:
    page, result = bench("tam_ablation", tmp_path, *TINY, *FEW)
    assert "| nova, published | 75.84 | 23.27 |" in page
    assert "| without-TAM, published | 75.38 | 11.38 |" in page
    assert list(result["seconds_by_frames"]["without-TAM"]) == ["9", "21", "33"]  # type: ignore[index]
    rows = {r["name"]: r for r in result["records"] if r["row"] == "trained"}  # type: ignore[attr-defined]
    assert rows["nova"]["options"]["paradigm.tam"] == "True"
    assert rows["without-TAM"]["options"]["paradigm.tam"] == "False"
    assert rows["nova"]["setting_hash"] == rows["without-TAM"]["setting_hash"]
    assert {m["name"] for m in rows["nova"]["metrics"]} >= {"fd-sprites", "motion"}
    # two captions: real, with, without
    assert height(tmp_path / "clips.png") == sheet_height(clips=2, rows=3)
    assert (tmp_path / "tam.png").is_file()
    assert (tmp_path / "index.html").is_file()


def test_extrapolation_on_sprites(tmp_path: Path) -> None:
    few = [o.replace("init_args.", "init_args.dataset.init_args.") for o in FEW]
    page, result = bench("extrapolation", tmp_path, *TINY, *few)
    assert "> No lpips: " in page
    assert result["frames"] == 33  # 9 latent frames: three times the trained 3
    curves = result["steps"]["window, overlap 1"]  # type: ignore[index]
    assert curves.keys() == {"psnr", "ssim", "motion", "shape-shown", "colour-shown"}
    assert all(len(curve["mean"]) == 8 for curve in curves.values())
    ceiling = result["steps"]["reconstruction (continuous)"]["psnr"]["mean"]  # type: ignore[index]
    assert min(ceiling) > max(curves["psnr"]["mean"])
    assert "| step 1 | step 2 (1x) | step 5 (2x) | step 8 (3x) |" in page
    # real, reconstruction, two ways to go on
    assert height(tmp_path / "figure4.png") == sheet_height(clips=2, rows=4)


@pytest.mark.slow
def test_extrapolation_and_image_to_video_on_files(tmp_path: Path) -> None:
    for i, clip in enumerate(Sprites(8, num_frames=40, size=32)):
        write_video(tmp_path / "videos" / ("Left", "Right")[i % 2] / f"{i}.mp4", clip.video, 8)
    parts = [f"--data.{part}.init_args" for part in ("train", "val")]
    clips = [o for p in parts for o in (f"{p}.clip.num_frames=5", f"{p}.clip.size=32")]
    clips += [o for p in parts for o in (f"{p}.clips_per_video=1", f"{p}.val_fraction=0.5")]
    data = [f"--data={tmp_path / 'videos'}", "--tokenizer=sprites-vae3d"]
    page, result = bench("extrapolation", tmp_path / "far", *data, *TINY, *clips)
    assert result["frames"] == 21  # of two latent frames six
    assert result["protocol"]["clip"]["window"] == "start"  # type: ignore[index]
    assert result["steps"]["times squeezed"].keys() == {"psnr", "ssim", "motion"}  # type: ignore[index]
    run = f"--run={tmp_path / 'far/nova'}"
    page, result = bench("image_to_video", tmp_path / "i2v", data[0], run, "--num-clips=2")
    names = [r["name"] for r in result["records"]]  # type: ignore[attr-defined]
    assert names[-2:] == ["with text", "without text"]
    with_text, without = (r["metrics"] for r in result["records"][-2:])  # type: ignore[index]
    assert with_text != without
    assert "| first frame repeated" in page.replace("*", "")


def test_continuing_needs_longer_clips(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["nova/extrapolation", f"--run={run}", f"--out={tmp_path}"]
    assert "have no continuation" in refused(given, capsys)


def test_scale_and_shift(tmp_path: Path) -> None:
    page, result = bench("scale_shift_ablation", tmp_path, *TINY, *FEW, "--rank=4")
    losses = result["losses"]
    assert list(losses) == ["rank-off", "rank-4", "rank-full"]  # type: ignore[call-overload]
    last = {p: losses["rank-4"][p][-1]["val_loss"] for p in ("image", "video")}  # type: ignore[index]
    drift = last["video"] - last["image"]
    assert f"| rank-4 | {last['image']:.4g} | {last['video']:.4g} | {drift:.4g} |" in page
    options = {r["name"]: r["options"] for r in result["records"]}  # type: ignore[attr-defined]
    assert options["rank-off"]["paradigm.scale_shift"] == "off"
    assert (tmp_path / "figure8a.png").is_file()


def test_norms_and_a_training_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = getattr(variants, "run_side_by_side")  # noqa: B009  # as the fixture has it

    def fail_one(jobs: Sequence[Job], logs: Path) -> None:
        here(jobs, logs)
        if jobs[0].name == "after the residual":
            raise UserError("after the residual failed.\nThe train loss is not finite (loss nan).")

    monkeypatch.setattr(variants, "run_side_by_side", fail_one)
    page, result = bench("norm_ablation", tmp_path, *TINY, *FEW)
    assert "after the residual (stopped: The train loss is not finite (loss nan).)" in page
    blocks = result["blocks"]["branch, before the residual"]["variance."]  # type: ignore[index]
    assert list(blocks) == ["temporal.0", "spatial.encoder.0", "spatial.decoder.0"]
    assert all(len(points) == 2 and points[0][1] > 0 for points in blocks.values())
    post = result["blocks"]["after the residual"]["variance."]["temporal.0"]  # type: ignore[index]
    assert post[0][1] == pytest.approx(1, abs=0.01)  # a layer norm has had the last word
    names = [r["name"] for r in result["records"] if r["row"] == "trained"]  # type: ignore[attr-defined]
    assert names == [
        "before the branch",
        "before, residual dropout",
        "before, stochastic depth",
        "branch, before the residual",
    ]
    options = {r["name"]: r["options"] for r in result["records"]}  # type: ignore[attr-defined]
    assert options[names[1]]["paradigm.dropout"] == "0.1"
    assert options[names[2]]["paradigm.stochastic_depth"] == "0.1"


def test_images_at_several_guidances(run: Path, tmp_path: Path) -> None:
    page, result = bench("text_to_image", tmp_path, f"--run={run}", "--num-clips=2")
    assert "| NOVA 1024 | 1.4B | 600M | 74.30 | 57.14 | 70.00 | 0.71 |" in page
    assert "| NOVA (T2I) | 0.6B | 16M | 0.7164 | 0.5608 | 0.6861 | 0.2915 |" in page
    rows = {r["name"]: r for r in result["records"]}  # type: ignore[attr-defined]
    assert rows["guidance 7"]["options"]["sampling.guidance"] == "7.0"
    found = {m["name"]: m["value"] for m in rows["real"]["metrics"]}
    assert found["colour-shown"] == 100
    assert (tmp_path / "images.png").is_file()


def test_videos_at_several_guidances(run: Path, tmp_path: Path) -> None:
    page, result = bench("text_to_video", tmp_path, f"--run={run}", "--num-clips=2")
    assert "| NOVA, final + rewriter | 0.6B | 20M | 12 | 80.12 | 80.39 | 79.05 |" in page
    trained = [r["name"] for r in result["records"] if r["row"] == "trained"]  # type: ignore[attr-defined]
    assert trained == ["guidance 1", "guidance 3", "guidance 7"]
    assert (tmp_path / "clips.png").is_file()


def test_suites_are_sampled_in_part_at_lab(run: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "metadata.jsonl"
    lines = [{"tag": "colors", "include": [], "prompt": f"a red square {i}"} for i in range(11)]
    prompts.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    out = tmp_path / "out"
    given = [f"--checkpoint=tiny={run}", f"--geneval={prompts}"]
    page, _ = bench("text_to_image", out, "--scale=lab", *given, "--num-sets=2")
    assert "> tiny, geneval: not scored yet" in page
    assert len(list((out / "tiny/geneval").glob("*/samples/*.png"))) == 2 * 4  # of 11 prompts two
    (out / "tiny" / EVALUATION_FOLDER).mkdir()
    save(record("geneval", "geneval-overall", 0.25), out / "tiny/evaluation/geneval.json")
    page, _ = bench("text_to_image", out, "--scale=lab", *given, "--num-sets=2")
    assert "| **tiny** (ours) |  |  |  |  |  | 0.25 |" in page


def test_rows_of_vbench_and_dpg_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(record("vbench", "vbench-total", 71.5), tmp_path / "row/evaluation/vbench.json")
    save(record("dpg-bench", "dpg", 70.25), tmp_path / "row/evaluation/dpg-bench.json")
    row = f"--row=mine={tmp_path / 'row'}"
    page, _ = bench("text_to_video", tmp_path / "t2v", "--scale=paper", row)
    assert "| **mine** (ours) |  |  |  | 71.50 |" in page
    page, _ = bench("dpg_bench", tmp_path / "dpg", row)
    assert "| NOVA (1.4B) | 83.01 | 86.32 | 88.69 | 86.35 | 91.94 | 74.80 |" in page
    assert "| **mine** (ours) | 70.25 |" in page
    given = ["nova/dpg_bench", f"--row=x={tmp_path}", f"--out={tmp_path / 'x'}"]
    assert "no record of DPG-Bench" in refused(given, capsys)


def record(protocol: str, metric: str, value: float) -> ResultRecord:
    """A record of one number."""
    return ResultRecord(
        name="tiny",
        row="reference",
        setting={},
        setting_hash="",
        protocol={"name": protocol, "hash": "0"},
        metrics=(MetricValue(name=metric, value=value, protocol=protocol),),
    )


@pytest.mark.parametrize("name", ["text_to_image", "t2i_compbench", "text_to_video", "dpg_bench"])
def test_published_tables_are_whole(name: str) -> None:
    with open(FOLDER / f"{name}.csv", newline="", encoding="utf-8") as file:
        heading, *rows = list(csv.reader(file))
    assert all(len(row) == len(heading) for row in rows)
    assert any(row[0].startswith("NOVA") for row in rows)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nova/tam_ablation", "--scale=lab"], "needs your own clips"),
        (["nova/tam_ablation", "--data=x"], "need a tokenizer"),
        (["nova/text_to_image", "--scale=paper"], "needs --checkpoint"),
        (["nova/text_to_video", "--scale=lab"], "needs --checkpoint"),
    ],
)
def test_what_it_cannot_do_without(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in refused([*arguments, f"--out={tmp_path}"], capsys)
