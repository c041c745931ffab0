"""The released FAR: names, shapes and counts, a checkpoint and its autoencoder into arvid, and its configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from torch import Tensor

from arvid import hub
from arvid.cli import main
from arvid.contracts import Condition, Request, TokenGrid, TokenSpec, UserError
from arvid.data.sprites import Sprites
from arvid.data.video import write_video
from arvid.nn.positions import rotation, scalar_code
from arvid.released.far import from_published, read_config
from arvid.released.generator import build
from arvid.tokenizers.pretrained import Pretrained
from arvid.training.export import fingerprint
from arvid.training.generator_module import load_generator

CONFIGS = Path(__file__).parents[2] / "configs"
Shapes = dict[str, tuple[int, ...]]
DCAE = TokenSpec("continuous", 32, (1, 16, 16), True)


def linear(name: str, dim_in: int, dim: int) -> Shapes:
    return {f"{name}.weight": (dim, dim_in), f"{name}.bias": (dim,)}


def released(dim: int, depth: int, *, head: int = 64, channels: int = 32, rows: int = 0) -> Shapes:
    """Names and shapes of the released tensors, written down from its code; `rows` of the table of classes."""
    shapes = linear("x_embedder", channels, dim)
    shapes |= linear("timestep_embedder.linear_1", 256, dim)
    shapes |= linear("timestep_embedder.linear_2", dim, dim)
    shapes |= {"label_embedder.embedding_table.weight": (rows, dim)} if rows else {}
    for i in range(depth):
        block = f"transformer_blocks.{i}"
        shapes |= linear(f"{block}.norm1.linear", dim, 3 * dim)
        shapes |= linear(f"{block}.norm2.linear", dim, 3 * dim)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes |= linear(f"{block}.attn.{name}", dim, dim)
        shapes |= {f"{block}.attn.norm_{name}.weight": (head,) for name in "qk"}
        shapes |= linear(f"{block}.mlp.net.0.proj", dim, 4 * dim)
        shapes |= linear(f"{block}.mlp.net.2", 4 * dim, dim)
    return shapes | linear("norm_out.linear", dim, 2 * dim) | linear("proj_out", dim, channels)


@pytest.mark.parametrize(
    ("size", "rows", "num_parameters"),
    [
        ("d12w768", 0, 129_560_864),
        ("d24w1024", 0, 456_835_104),
        ("d24w1024", 102, 456_939_552),
        ("d28w1152", 0, 673_703_584),
        ("d28w1152", 102, 673_821_088),
    ],
)
def test_whole_models_have_the_released_tensors(size: str, rows: int, num_parameters: int) -> None:
    file = yaml.safe_load((CONFIGS / f"sizes/{size}.yaml").read_text())
    wanted = file["model"]["init_args"]["size"]
    shapes = released(wanted["dim"], wanted["depth"], rows=rows)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = read_config(tensors, DCAE, 16)
    with torch.device("meta"):
        net = build(config, DCAE)
        state, moves = from_published(tensors, net)
    net.load_state_dict(state, assign=True)
    assert {move.source.split("[")[0] for move in moves} == set(tensors)
    assert sum(p.numel() for p in net.parameters()) == num_parameters
    assert config["clip_shape"] == [16, 128, 128]
    assert config["size"] == wanted
    paradigm = yaml.safe_load((CONFIGS / "paradigms/far-released.yaml").read_text())
    assert config["paradigm"] == paradigm["model"]["init_args"]["paradigm"]


def test_codes_of_the_released_form() -> None:
    """128 frequencies from 1 to 1/10000; of the 32 pairs of a head, time rotates 8, row and column 12 each."""
    code = scalar_code(torch.tensor([1000.0]), form="far")[0]
    assert code[0].item() == pytest.approx(torch.tensor(1000.0).sin().item(), abs=1e-6)
    assert code[127].item() == pytest.approx(torch.tensor(0.1).sin().item(), abs=1e-6)
    _, sin = rotation(torch.eye(3, dtype=torch.long), 64, "far")
    turned = (sin[:, :32] != 0).int()
    assert turned.argmax(1).tolist() == [0, 8, 20]
    assert turned.sum(1).tolist() == [8, 12, 12]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DC-AE with stride 4, with batch norms in the decoder as FAR's has them, as a file of torch.save."""
    torch.manual_seed(0)
    config: dict[str, Any] = {"latent_channels": 4, "attention_head_dim": 4, "scaling_factor": 0.5}
    for side in ("encoder", "decoder"):
        config[f"{side}_block_types"] = ["ResBlock", "ResBlock", "EfficientViTBlock"]
        config[f"{side}_block_out_channels"] = [8, 8, 8]
        config[f"{side}_layers_per_block"] = [0, 1, 1]
        config[f"{side}_qkv_multiscales"] = [[], [], []]
    config["decoder_norm_types"] = ["batch_norm", "batch_norm", "rms_norm"]
    config["decoder_act_fns"] = ["relu", "relu", "silu"]
    folder = tmp_path_factory.mktemp("far") / "dcae"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC", **config}))
    tensors = diffusers.AutoencoderDC(**config).state_dict()
    assert any(value.dtype == torch.int64 for value in tensors.values())
    torch.save(tensors, folder / "diffusion_pytorch_model.bin")
    return folder


def test_the_autoencoder_is_written_and_read_again(autoencoder: Path, tmp_path: Path) -> None:
    tokenizer = Pretrained.from_published(str(autoencoder))
    hub.write_model(tmp_path, *tokenizer.to_published())
    assert fingerprint(Pretrained.from_published(str(tmp_path))) == fingerprint(tokenizer)


@pytest.fixture
def checkpoint() -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = released(48, 2, head=16, channels=4, rows=4)
    return {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}


def run_import(file: Path, out: Path, autoencoder: Path, *options: str) -> int:
    tokenizer = f"--tokenizer=pretrained:{autoencoder}"
    return main(["import", "far", str(file), str(out), tokenizer, *options])


def test_a_checkpoint_becomes_arvids(
    checkpoint: dict[str, Tensor], autoencoder: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "FAR.pth", tmp_path / "far.ckpt"
    torch.save(checkpoint, file)
    assert run_import(file, out, autoencoder, "--frames=3") == 0
    model = load_generator(out)
    state = model.paradigm.state_dict()
    table = checkpoint["label_embedder.embedding_table.weight"]
    assert torch.equal(state["context.label.weight"], table[:3])
    assert torch.equal(state["context.null"], table[3:])
    q, k, v = state["network.blocks.1.attn.qkv.weight"].view(3, 3, 2, 8, 48)  # heads, odd or even
    block = "transformer_blocks.1.attn"
    for own, name in ((q, "to_q"), (k, "to_k")):
        released = checkpoint[f"{block}.{name}.weight"].view(3, 8, 2, 48)
        assert torch.equal(own, released.transpose(1, 2))
    assert torch.equal(v.flatten(0, 2), checkpoint[f"{block}.to_v.weight"])
    scale, shift = checkpoint["norm_out.linear.bias"].chunk(2)
    assert torch.equal(state["network.modulation.bias"], torch.cat([shift, scale]))
    assert (model.sampling.guidance, model.sampling.diffusion_steps) == (2.0, 50)
    condition = Condition(values={"label": torch.tensor([2])})
    options = model.sampling.replace(diffusion_steps=2)
    request = Request(condition, model.paradigm.grid, options=options)
    tokens = model.paradigm.generate(request)
    assert tokens.shape == (1, 3, 8, 8, 4)
    assert model.tokenizer.decode(tokens).shape == (1, 3, 3, 32, 32)


def test_without_classes(checkpoint: dict[str, Tensor], autoencoder: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "FAR.pth", tmp_path / "far.ckpt"
    del checkpoint["label_embedder.embedding_table.weight"]
    torch.save(checkpoint, file)
    assert run_import(file, out, autoencoder) == 0
    model = load_generator(out)
    assert model.paradigm.grid == TokenGrid(16, 8, 8)
    assert (model.sampling.guidance, model.conditioner.sizes) == (1.0, {})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            {"transformer_blocks.1.attn.to_k.bias": None},
            r"missing transformer_blocks\.1\.attn\.to_k",
        ),
        ({"extra": torch.ones(2)}, "unexpected extra"),
        ({"proj_out.bias": torch.ones(5)}, r"proj_out\.bias is \(5,\), not \(4,\)"),
        ({"proj_out.bias": torch.ones(4, dtype=torch.int64)}, "int64, not floats"),
        ({"context_embedder.weight": torch.ones(2, 2)}, "long-context"),
        ({"x_embedder.weight": torch.ones(48, 32)}, "vectors of 32 numbers"),
        ({"x_embedder.weight": None}, "not FAR's weights"),
        ({"x_embedder.weight": "a"}, "not FAR's weights"),
        ({"transformer_blocks.0.attn.norm_q.weight": torch.ones(0)}, "not FAR's weights"),
        ({3: torch.ones(1)}, "not FAR's weights"),
    ],
)
def test_what_does_not_fit_is_named(
    change: dict[Any, Any], fault: str, checkpoint: dict[str, Tensor]
) -> None:
    changed = {k: v for k, v in {**checkpoint, **change}.items() if v is not None}
    spec = TokenSpec("continuous", 4, (1, 4, 4), True)
    with pytest.raises(UserError, match=fault):
        from_published(changed, build(read_config(changed, spec, 2), spec))


def test_a_file_that_is_no_checkpoint(autoencoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "FAR.pth"
    torch.save([1, 2], file)
    assert run_import(file, tmp_path / "far.ckpt", autoencoder) != 0
    assert not (tmp_path / "far.ckpt").exists()


def test_the_released_setting_trains(autoencoder: Path, tmp_path: Path) -> None:
    for i, clip in enumerate(Sprites(6, num_frames=50, size=32)):
        write_video(tmp_path / "videos" / ("A", "B")[i % 2] / f"v_{i}.mp4", clip.video, 25)
    configs = ("settings/far-released-ucf101", "paradigms/far-released", "sizes/debug")
    data = [
        f"--data.{part}.init_args.{option}"
        for part in ("train", "val")
        for option in (f"root={tmp_path / 'videos'}", "val_fraction=0.5", "clip.size=32")
    ]
    run = tmp_path / "run"
    given = [
        *(f"--config={name}" for name in configs),
        *data,
        f"--model.init_args.tokenizers.continuous=pretrained:{autoencoder}",
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--trainer.max_steps=1",
        "--trainer.val_check_interval=1",
        "--data.clips_per_step=1",
        "--data.num_workers=0",
        f"--run={run}",
    ]
    assert main(["fit", *given]) == 0
    model = load_generator(run)
    assert model.clip_shape == (16, 32, 32)
    assert model.conditioner.sizes == {"label": 2}
