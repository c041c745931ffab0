"""NOVA's published hyper-parameters: each set is built, trained one step at a small size, and loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from arvid.cli import main
from arvid.contracts import Size
from arvid.data.sprites import Sprites
from arvid.data.video import write_video
from arvid.paradigms.nova.published import _size
from arvid.tokenizers.open_sora_plan import OpenSoraPlan
from arvid.training.export import save_tokenizer
from arvid.training.generator_module import load_generator

CONFIGS = Path(__file__).parents[2] / "configs"
SETS = [f"nova-{whose}-{what}" for whose in ("released", "paper") for what in ("image", "video")]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a small run on a few videos needs on the command line."""
    folder = tmp_path_factory.mktemp("nova")
    lines = []
    for i, clip in enumerate(Sprites(2, num_frames=66, size=48)):
        write_video(folder / f"{i}.mp4", clip.video, 8)
        lines.append(json.dumps({"path": f"{i}.mp4", "caption": clip.caption}))
    (folder / "clips.jsonl").write_text("\n".join(lines))
    torch.manual_seed(0)
    tokenizer = folder / "vae.safetensors"
    save_tokenizer(OpenSoraPlan(channels=(8, 8, 8, 8), num_groups=4), tokenizer, {})
    data = [
        f"--data.{part}.init_args.{option}"
        for part in ("train", "val")
        for option in (f"path={folder / 'clips.jsonl'}", "clip.size=[32,64]")
    ]
    return [
        *data,
        "--data.clips_per_step=1",
        "--data.num_workers=0",
        f"--model.init_args.tokenizers.continuous={tokenizer}",
        "--model.init_args.text=arvid.nn.text.WordTextEncoder",
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=1",
        "--trainer.val_check_interval=1",
    ]


@pytest.mark.parametrize("name", SETS)
def test_published_sets_train(name: str, tmp_path: Path, options: list[str]) -> None:
    run = tmp_path / "run"
    configs = [f"settings/{name}", f"paradigms/{name}", "sizes/debug"]
    assert main(["fit", *(f"--config={c}" for c in configs), *options, f"--run={run}"]) == 0
    model = load_generator(run)
    assert model.clip_shape == (33 if name.endswith("video") else 1, 32, 64)
    assert model.paradigm.num_sets == 64


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_published_sets_train_sharded(
    name: str, tmp_path: Path, options: list[str], alone_and_sharded: Any
) -> None:
    """Two processes compute the loss of one, up to the rounding of bfloat16 in its sums."""
    configs = [f"--config={c}" for c in (f"settings/{name}", f"paradigms/{name}", "sizes/debug")]
    given = ["fit", *configs, *options, "--data.clips_per_step=2", "--data.batch_size=1"]
    alone, sharded = alone_and_sharded(given)
    assert sharded == pytest.approx(alone, rel=1e-4)
    assert load_generator(tmp_path / "2").clip_shape[1:] == (32, 64)


def test_the_sets_are_those_of_the_facts() -> None:
    """Facts §2.3 and §4: what the released YAMLs say, and the paper."""
    expected = {
        "nova-released-video": (384, 60_000, 1e-4, 0.97, 25),
        "nova-released-image": (1024, 30_000, 1e-4, 0.98, 25),
        "nova-paper-video": (384, 60_000, 1.5e-4, None, 100),
        "nova-paper-image": (1024, 30_000, 4e-4, None, 100),
    }
    for name, (clips, steps, rate, decay, diffusion_steps) in expected.items():
        config = yaml.safe_load((CONFIGS / f"settings/{name}.yaml").read_text())
        trainer, model = config["trainer"], config["model"]["init_args"]
        averaging = [c["init_args"]["decay"] for c in trainer.get("callbacks", [])]
        assert config["data"]["clips_per_step"] == clips
        assert trainer["max_steps"] == steps
        assert model["optimizer"]["lr"] == rate
        assert model["optimizer"]["schedule"] == "constant"
        assert averaging == ([decay] if decay else [])
        assert model["sampling"]["diffusion_steps"] == diffusion_steps


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("d48w768", ["vit_d16w768", "vit_d32w768", "mlp_d6w768"]),
        ("d48w1024", ["vit_d16w1024", "vit_d32w1024", "mlp_d3w1280"]),
        ("d48w1024-sdxl", ["vit_d16w1024", "vit_d32w1024", "mlp_d6w1024"]),
        ("d48w1536", ["vit_d16w1536", "vit_d32w1536", "mlp_d6w1536"]),
    ],
)
def test_sizes_are_the_released_ones(name: str, arch: list[str]) -> None:
    config = yaml.safe_load((CONFIGS / f"sizes/{name}.yaml").read_text())
    size = config["model"]["init_args"]["size"]
    assert Size(**{**size, "name": ""}) == Size(**{**vars(_size(arch)), "name": ""})
