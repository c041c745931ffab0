"""NBP's published hyper-parameters: each set trains one step at a small size; a run with what is arvid's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from arvid.cli import main
from arvid.contracts import Size
from arvid.data.sprites import Sprites
from arvid.data.video import write_video
from arvid.nn.causal_conv import Backbone
from arvid.tokenizers.magvit_fsq import MagvitFSQ
from arvid.training.export import save_tokenizer
from arvid.training.generator_module import load_generator

CONFIGS = Path(__file__).parents[2] / "configs"
SETS = [f"nbp-{whose}-{what}" for whose in ("released", "paper") for what in ("ucf101", "k600")]
ONE_STEP = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
    "--trainer.precision=32-true",
    "--data.clips_per_step=2",
    "--data.num_workers=0",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of videos, their lists, a video tokenizer and one for prompts."""
    root = tmp_path_factory.mktemp("nbp")
    paths = []
    for i, clip in enumerate(Sprites(4, num_frames=34, size=48)):
        paths.append(f"{('YoYo', 'TaiChi')[i % 2]}/v_x_g{i:02d}_c01.mp4")
        write_video(root / "videos" / paths[-1], clip.video, 16)
    (root / "list.txt").write_text("\n".join(paths))
    rows = (json.dumps({"path": f"videos/{path}"}) for path in paths)
    (root / "list.jsonl").write_text("\n".join(rows))
    words = ["<unk>", "<s>", "</s>", "yo yo", "tai chi"]
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    words.save(str(root / "tokenizer.json"))
    torch.manual_seed(0)
    backbone = Backbone(
        base=4, multipliers=(1, 1, 1, 1), num_units=1, num_mid_units=0, num_groups=2
    )
    save_tokenizer(MagvitFSQ(backbone=backbone, levels=(4, 4)), root / "fsq.safetensors", {})
    return root


def places(folder: Path, name: str) -> list[str]:
    """Where things lie, and clips of 32 x 32 pixels, whose rows have four tokens."""
    root, listed = folder / "videos", folder / "list.txt"
    options = [f"root={root}", f"split_list={listed}", "clips_per_video=1"]
    if name.endswith("k600"):
        options = [f"path={folder / 'list.jsonl'}"]
    data = [
        f"--data.{part}.init_args.{option}"
        for part in ("train", "val")
        for option in (*options, "clip.size=32")
    ]
    text = [f"--model.init_args.text.init_args.tokenizer={folder}"]
    return [
        *data,
        *(text if name.endswith("ucf101") else []),
        f"--model.init_args.tokenizers.discrete={folder / 'fsq.safetensors'}",
        "--model.init_args.paradigm.init_args.block=[1,1,4]",
    ]


@pytest.mark.parametrize("name", SETS)
def test_published_sets_train(name: str, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    configs = [f"--config={c}" for c in (f"settings/{name}", f"paradigms/{name}", "sizes/debug")]
    assert main(["fit", *configs, *ONE_STEP, *places(folder, name), f"--run={run}"]) == 0
    paradigm = load_generator(run).paradigm
    assert paradigm.layout.start == ("hybrid" if name == "nbp-released-ucf101" else "none")
    assert paradigm.context.spec.text_len == (8 if name.endswith("ucf101") else 0)
    rows = len(paradigm.places.positions)
    assert rows == (5120 if "released" in name else len(paradigm.blocks))


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_published_sets_train_sharded(
    name: str, folder: Path, tmp_path: Path, alone_and_sharded: Any
) -> None:
    """Two processes compute the loss of one."""
    configs = [f"--config={c}" for c in (f"settings/{name}", f"paradigms/{name}", "sizes/debug")]
    given = ["fit", *configs, *ONE_STEP, *places(folder, name), "--data.batch_size=1"]
    alone, sharded = alone_and_sharded(given)
    assert sharded == pytest.approx(alone, rel=1e-6)
    assert load_generator(tmp_path / "2").clip_shape == (17, 32, 32)


def test_the_sets_are_those_of_the_table_and_the_scripts() -> None:
    """Peak rate, second beta, warm-up, schedule, clips a step, steps, frame rate, precision."""
    expected = {
        "nbp-paper-ucf101": (6e-4, 0.98, 5000, "linear", 256, 95_400, 8, "bf16-mixed"),
        "nbp-released-ucf101": (6e-4, 0.95, 5000, "cosine", 256, 100_000, 8, "bf16-mixed"),
        "nbp-paper-k600": (1e-3, 0.98, 10_000, "linear", 64, 462_000, 16, "32-true"),
        "nbp-released-k600": (1e-3, 0.95, 10_000, "cosine", 64, 4_000_000, 16, "32-true"),
    }
    for name, values in expected.items():
        config = yaml.safe_load((CONFIGS / f"settings/{name}.yaml").read_text())
        trainer, data, model = config["trainer"], config["data"], config["model"]["init_args"]
        optimizer, clip = model["optimizer"], data["train"]["init_args"]["clip"]
        assert values == (
            optimizer["lr"],
            optimizer["betas"][1],
            optimizer["warmup_steps"],
            optimizer["schedule"],
            data["clips_per_step"],
            trainer["max_steps"],
            clip["fps"],
            trainer["precision"],
        )
        assert (optimizer["weight_decay"], trainer["gradient_clip_val"]) == (0.01, 1.0)
        assert model["sampling"] == {"top_k": 16_000, "top_p": 0.9}
        assert (clip["num_frames"], clip["size"], clip["short"]) == (17, 128, "black")
        paradigm = yaml.safe_load((CONFIGS / f"paradigms/{name}.yaml").read_text())
        options = paradigm["model"]["init_args"]["paradigm"]["init_args"]
        ids = 64_000 + options.get("num_other_ids", 0)
        assert ids == {"released-ucf101": 96_016, "paper-ucf101": 96_001}.get(name[4:], 64_000)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("d24w1536", (24, 1536, 16)), ("d24w2048", (24, 2048, 32)), ("d32w3072", (32, 3072, 32))],
)
def test_sizes_are_those_of_table_4(name: str, expected: tuple[int, int, int]) -> None:
    config = yaml.safe_load((CONFIGS / f"sizes/{name}.yaml").read_text())
    size = Size(**config["model"]["init_args"]["size"])
    assert (size.name, (size.depth, size.dim, size.num_heads)) == (name, expected)


def test_a_run_with_everything_that_is_not_published(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class labels with guidance, modern blocks, square ones, filled in rounds, at a falling temperature."""
    run = tmp_path / "run"
    options = {
        "block": "[1,2,2]",
        "start": "hybrid",
        "style": "llama",
        "reveal": "true",
        "condition_dropout": "0.2",
    }
    given = [f"--model.init_args.paradigm.init_args.{k}={v}" for k, v in options.items()]
    configs = ["settings/nbp-released-ucf101", "paradigms/next_block", "sizes/debug"]
    fit = ["fit", *(f"--config={c}" for c in configs), *ONE_STEP]
    label = ["--model.init_args.text=null", "--model.init_args.label=true"]
    where = [option for option in places(folder, "nbp-ucf101") if ".text." not in option]
    assert main([*fit, *where, *given, *label, f"--run={run}"]) == 0
    sample = ["sample", f"--checkpoint={run}", f"--out={tmp_path / 'out'}", "--count=2"]
    drawn = ["--guidance=2", "--rounds=2", "--temperature=1", "--last-temperature=0.5"]
    capsys.readouterr()
    assert main([*sample, "--label=1", *drawn]) == 0
    said = f"2 clips of 17 frames, network evaluations per clip:\n  {4 + 19 * 2} transformer"
    assert said in capsys.readouterr().out
    assert main([*sample, "--label=2"]) != 0
    assert "Label 2 is unknown" in capsys.readouterr().err


def test_a_block_that_does_not_tile_is_refused_before_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = ["settings/nbp-paper-k600", "paradigms/nbp-paper-k600", "sizes/debug"]
    given = [*(f"--config={c}" for c in configs), *ONE_STEP, *places(folder, "nbp-paper-k600")]
    given[-1] = given[-1].replace("[1,1,4]", "[1,1,3]")
    assert main(["fit", *given, f"--run={tmp_path / 'run'}"]) != 0
    assert "1x1x3 tokens does not tile the grid 5x4x4" in capsys.readouterr().err
