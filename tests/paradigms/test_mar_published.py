"""The released MAR: names, shapes and counts, and a checkpoint into arvid."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arvid.cli import main
from arvid.contracts import Condition, Request, TokenSpec, UserError
from arvid.importing import read_checkpoint
from arvid.nn.causal_conv import Backbone
from arvid.released.generator import build
from arvid.released.mar import MarImporter, from_published, read_config
from arvid.tokenizers.vae3d import VAE3D
from arvid.training.export import save_tokenizer
from arvid.training.generator_module import load_generator

Shapes = dict[str, tuple[int, ...]]
KL16 = TokenSpec("continuous", 16, (1, 16, 16), True)


def linear(name: str, dim_in: int, dim: int) -> Shapes:
    return {f"{name}.weight": (dim, dim_in), f"{name}.bias": (dim,)}


def norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def released(
    dim: int,
    depth: int,
    width: int,
    head_depth: int,
    *,
    side: int = 16,
    vector: int = 16,
    classes: int = 1000,
    copies: int = 64,
) -> Shapes:
    """Names and shapes of the released tensors, written down from its code (not from arvid's table)."""
    num = side**2
    shapes: Shapes = {
        "class_emb.weight": (classes, dim),
        "fake_latent": (1, dim),
        "mask_token": (1, 1, dim),
        "encoder_pos_embed_learned": (1, copies + num, dim),
        "decoder_pos_embed_learned": (1, copies + num, dim),
        "diffusion_pos_embed_learned": (1, num, dim),
    }
    shapes |= linear("z_proj", vector, dim) | norm("z_proj_ln", dim)
    shapes |= linear("decoder_embed", dim, dim)
    for part in ("encoder", "decoder"):
        shapes |= norm(f"{part}_norm", dim)
        for i in range(depth):
            block = f"{part}_blocks.{i}"
            shapes |= norm(f"{block}.norm1", dim) | norm(f"{block}.norm2", dim)
            shapes |= linear(f"{block}.attn.qkv", dim, 3 * dim)
            shapes |= linear(f"{block}.attn.proj", dim, dim)
            shapes |= linear(f"{block}.mlp.fc1", dim, 4 * dim)
            shapes |= linear(f"{block}.mlp.fc2", 4 * dim, dim)
    net = "diffloss.net"
    shapes |= linear(f"{net}.time_embed.mlp.0", 256, width)
    shapes |= linear(f"{net}.time_embed.mlp.2", width, width)
    shapes |= linear(f"{net}.cond_embed", dim, width) | linear(f"{net}.input_proj", vector, width)
    for i in range(head_depth):
        block = f"{net}.res_blocks.{i}"
        shapes |= norm(f"{block}.in_ln", width) | linear(f"{block}.mlp.0", width, width)
        shapes |= linear(f"{block}.mlp.2", width, width)
        shapes |= linear(f"{block}.adaLN_modulation.1", width, 3 * width)
    shapes |= linear(f"{net}.final_layer.linear", width, 2 * vector)
    return shapes | linear(f"{net}.final_layer.adaLN_modulation.1", width, 2 * width)


def on_meta(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("dim", "depth", "width", "head_depth", "num_parameters"),
    [
        (768, 12, 1024, 6, 207_924_768),
        (1024, 16, 1280, 8, 478_326_304),
        (1280, 20, 1536, 12, 942_403_104),
    ],
)
def test_whole_models_have_the_released_tensors(
    dim: int, depth: int, width: int, head_depth: int, num_parameters: int
) -> None:
    tensors = on_meta(released(dim, depth, width, head_depth))
    config = read_config(tensors, KL16)
    with torch.device("meta"):
        net = build(config, KL16)
    state, moves = from_published(tensors, net)
    assert {move.source for move in moves} == set(tensors)
    net.load_state_dict(state, assign=True)
    assert len(moves) == len(tensors)
    assert sum(p.numel() for p in net.parameters()) == num_parameters
    assert config["clip_shape"] == [1, 256, 256]
    assert config["size"]["num_heads"] == (12 if dim == 768 else 16)


SMALL = {"side": 2, "vector": 16, "classes": 3, "copies": 4}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 4 channels, so that MAR's vectors of 16 numbers are patches of 2 x 2."""
    path = tmp_path_factory.mktemp("mar") / "vae.safetensors"
    strides = ((1, 2, 2),)
    backbone = Backbone(
        base=8, multipliers=(1, 1), strides=strides, num_units=1, num_mid_units=0, num_groups=2
    )
    save_tokenizer(VAE3D(backbone=backbone, latent_channels=4), path, {})
    return path


@pytest.fixture
def checkpoint() -> dict[str, object]:
    shapes = released(48, 2, 32, 1, **SMALL)
    weights = {name: 0.02 * torch.randn(shape) for name, shape in shapes.items()}
    args = argparse.Namespace(lr=1e-4)
    return {"model": {}, "model_ema": weights, "epoch": 400, "args": args}


def test_a_checkpoint_becomes_arvids(
    checkpoint: dict[str, object],
    tokenizer: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out = tmp_path / "checkpoint-last.pth", tmp_path / "mar.ckpt"
    torch.save(checkpoint, file)
    assert main(["import", "mar", str(file), str(out), "--tokenizer", str(tokenizer)]) == 0
    assert "epoch" in capsys.readouterr().out
    model = load_generator(out)
    weights = checkpoint["model_ema"]
    assert isinstance(weights, dict)
    state = model.paradigm.state_dict()
    assert torch.equal(state["network.head_positions"], weights["diffusion_pos_embed_learned"][0])
    names = ["shift", "scale", "gate"]
    parts = weights["diffloss.net.res_blocks.0.adaLN_modulation.1.weight"].split(32)
    theirs = dict(zip(names, parts, strict=True))
    own = state["head.net.blocks.0.modulation.weight"]
    assert torch.equal(own, torch.cat([theirs[n] for n in ("scale", "shift", "gate")]))
    patch = weights["z_proj.weight"].view(48, 4, 2, 2)  # channel, row, column
    assert torch.equal(state["network.embed.project.weight"].view(48, 2, 2, 4)[..., 3], patch[:, 3])
    assert model.sampling.guidance == 3.0
    condition = Condition(values={"label": torch.tensor([2])})
    options = model.sampling.replace(diffusion_steps=2)
    request = Request(condition, model.paradigm.grid, options=options)
    assert model.paradigm.generate(request).shape == (1, 1, 4, 4, 4)


def test_what_does_not_fit_is_named(
    checkpoint: dict[str, object], tokenizer: Path, tmp_path: Path
) -> None:
    weights = checkpoint["model_ema"]
    assert isinstance(weights, dict)
    config = read_config(weights, TokenSpec("continuous", 4, (1, 2, 2), True))
    net = build(config, TokenSpec("continuous", 4, (1, 2, 2), True))
    lacking = {name: value for name, value in weights.items() if name != "z_proj.bias"}
    with pytest.raises(UserError, match=r"missing z_proj\.bias"):
        from_published(lacking, net)
    with pytest.raises(UserError, match="vectors of 16 numbers, the tokenizer's are continuous"):
        read_config(weights, TokenSpec("continuous", 5, (1, 2, 2), True))
    with pytest.raises(UserError, match="not MAR's weights"):
        read_config({"a": torch.ones(2)}, KL16)


@pytest.mark.parametrize("nest", [lambda odd: odd, lambda odd: {"model": odd}])
def test_names_that_are_not_text_are_refused(
    nest: Callable[[dict[object, Tensor]], dict[object, object]], tmp_path: Path
) -> None:
    torch.save(nest({"a": torch.ones(2), 3: torch.ones(2)}), tmp_path / "odd.pth")
    with pytest.raises(UserError, match="name of a tensor is 3, which is not text"):
        read_checkpoint(tmp_path / "odd.pth")


def test_entries_that_are_no_weights_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    torch.save({"model_ema": [1]}, tmp_path / "odd.pth")
    options = argparse.Namespace(tokenizer=str(tokenizer))
    with pytest.raises(UserError, match="'model_ema' is a list, not a dict"):
        MarImporter().run(tmp_path / "odd.pth", tmp_path / "out.ckpt", options)
