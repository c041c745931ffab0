"""The released NOVA: names, shapes and counts, and a pipeline's folder in and out of arvid."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from arvid.cli import main
from arvid.contracts import TokenSpec, UserError
from arvid.data.video import read_video, write_video
from arvid.paradigms.nova.pipeline import import_file
from arvid.paradigms.nova.published import (
    from_published,
    published_names,
    read_config,
    to_published,
    write_config,
)
from arvid.sampling.contact_sheet import encode_png
from arvid.tokenizers.open_sora_plan import OpenSoraPlan
from arvid.training.generator_module import load_generator

Shapes = dict[str, tuple[int, ...]]
TEXT_DIM, TEXT_LEN = 16, 6
PHI = {
    "architectures": ["PhiEncoderModel"],
    "model_type": "phi",
    "vocab_size": 8,
    "hidden_size": TEXT_DIM,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""`text_encoder/config.json` with the keys that the release has."""
DDPM = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}


def config(
    size: tuple[int, int],
    base_frames: int,
    arch: list[str],
    rank: int | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """`transformer/config.json` as published."""
    height, width = size
    return {
        "image_dim": 4,
        "image_size": list(size),
        "image_stride": 8,
        "text_token_dim": 2560,
        "text_token_len": 256,
        "video_mixer_rank": rank,
        "video_base_size": [base_frames, height // 32, width // 32],
        "image_base_size": [height // 16, width // 16],
        "arch": arch,
        **changes,
    }


def linear(name: str, dim_in: int, dim: int) -> Shapes:
    return {f"{name}.weight": (dim, dim_in), f"{name}.bias": (dim,)}


def norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def convolution(name: str, dim: int, patch: int) -> Shapes:
    return {f"{name}.proj.weight": (dim, 4, patch, patch), f"{name}.proj.bias": (dim,)}


def transformer(name: str, depth: int, dim: int, patch: int) -> Shapes:
    shapes = convolution(f"{name}.patch_embed", dim, patch) | norm(f"{name}.norm", dim)
    for i in range(depth):
        block = f"{name}.blocks.{i}"
        shapes |= norm(f"{block}.norm1", dim) | norm(f"{block}.norm2", dim)
        shapes |= linear(f"{block}.attn.qkv", dim, 3 * dim) | linear(f"{block}.attn.proj", dim, dim)
        shapes |= linear(f"{block}.mlp.fc1", dim, 4 * dim) | linear(
            f"{block}.mlp.fc2", 4 * dim, dim
        )
    return shapes


def two_layers(name: str, dim_in: int, dim: int, names: tuple[str, str]) -> Shapes:
    return linear(f"{name}.{names[0]}", dim_in, dim) | linear(f"{name}.{names[1]}", dim, dim)


def released(given: dict[str, Any]) -> Shapes:
    """Names and shapes of the released tensors, written down from its state dict (facts, not arvid's table)."""
    (temporal, dim), (spatial, _), (blocks, width) = (
        tuple(int(n) for n in name[5:].split("w")) for name in given["arch"]
    )
    text = given["text_token_dim"]
    shapes = transformer("video_encoder", temporal, dim, 4)
    shapes |= transformer("image_encoder", spatial, dim, 2)
    shapes |= convolution("image_decoder.patch_embed", width, 2)
    fc, cond = ("fc1", "fc2"), "image_decoder.time_cond_embed"
    shapes |= two_layers(f"{cond}.timestep_proj", 256, width, fc)
    shapes |= two_layers(f"{cond}.condition_proj", dim, width, fc)
    for i in range(blocks):
        block = f"image_decoder.blocks.{i}"
        shapes |= linear(f"{block}.norm1.proj", width, 3 * width)
        shapes |= two_layers(f"{block}.proj", width, width, fc) | norm(f"{block}.norm2", width)
    shapes |= linear("image_decoder.norm.proj", width, 2 * width)
    shapes |= linear("image_decoder.head", width, 16)
    shapes |= {"mask_embed.bos_token": (1, dim), "mask_embed.mask_token": (1, dim)}
    shapes |= {"text_embed.weight": (512, text)}
    shapes |= linear("text_embed.proj", text, dim) | norm("text_embed.norm", dim)
    shapes |= norm("video_pos_embed.norm", dim)
    shapes |= two_layers("video_pos_embed.time_proj", 256, dim, ("0", "2"))
    if rank := given["video_mixer_rank"]:
        if rank > 0:
            shapes["video_encoder.mixer.lora.weight"] = (rank, dim)
        shapes |= linear("video_encoder.mixer.proj", rank if rank > 0 else dim, 2 * dim)
    if given["video_base_size"][0] > 1:
        for name in ("flow", "fps"):
            shapes |= two_layers(f"motion_embed.{name}_proj", 256, dim, ("0", "2"))
    return shapes


VIDEO = config((480, 768), 16, ["vit_d16w1024", "vit_d32w1024", "mlp_d3w1280"], 24)
IMAGE = {
    width: config((1024, 1024), 1, [f"vit_d16w{width}", f"vit_d32w{width}", f"mlp_d6w{width}"])
    for width in (768, 1024, 1536)
}
ONE_FRAME = TokenSpec("continuous", 4, (1, 8, 8), causal=True)
FOUR_FRAMES = TokenSpec("continuous", 4, (4, 8, 8), causal=True)


@pytest.mark.parametrize(
    ("given", "spec", "num_tensors", "total", "trainable"),
    [
        (VIDEO, FOUR_FRAMES, 646, 645_505_040, 644_194_320),
        (IMAGE[768], ONE_FRAME, 659, 365_256_720, 363_946_000),
        (IMAGE[1024], ONE_FRAME, 659, 647_004_176, 645_693_456),
        (IMAGE[1536], ONE_FRAME, 659, 1_451_147_280, 1_449_836_560),
    ],
    ids=["video", "w768", "w1024", "w1536"],
)
def test_released_models_have_their_tensors(
    given: dict[str, Any], spec: TokenSpec, num_tensors: int, total: int, trainable: int
) -> None:
    with torch.device("meta"):
        net = read_config(given, "ddpm").build(spec)
    tensors = to_published(net)
    assert {name: tuple(value.shape) for name, value in tensors.items()} == released(given)
    assert len(tensors) == num_tensors
    assert sum(value.numel() for value in tensors.values()) == total
    assert sum(p.numel() for p in net.parameters()) == trainable
    written = write_config(net)
    assert {key: written[key] for key in given} == given


SMALL = config(
    (32, 64),
    8,
    ["vit_d2w64", "vit_d4w64", "mlp_d1w48"],
    5,
    text_token_dim=TEXT_DIM,
    text_token_len=TEXT_LEN,
)


def seeded(shapes: Shapes) -> dict[str, Tensor]:
    """Weights from each tensor's place in the list of names."""
    tensors = {}
    for place, (name, shape) in enumerate(sorted(shapes.items())):
        generator = torch.Generator().manual_seed(place)
        scale = 1 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.1
        tensors[name] = scale * torch.randn(shape, generator=generator)
    return tensors


@pytest.mark.parametrize("rank", [None, 5, -1])
def test_each_tensor_goes_where_it_belongs(rank: int | None) -> None:
    given = {**SMALL, "video_mixer_rank": rank}
    tensors = seeded(released(given))
    net = read_config(given, "ddpm").build(FOUR_FRAMES)
    state, moves = from_published(tensors, net)
    net.load_state_dict(state)
    assert {(move.source, move.shape) for move in moves} == set(released(given).items())
    frame = torch.randn(2, 4, 8, 4)
    for name, patch in (
        ("video_encoder", net.temporal.patch),
        ("image_encoder", net.spatial.patch),
    ):
        weight, bias = (tensors[f"{name}.patch_embed.proj.{part}"] for part in ("weight", "bias"))
        stride = weight.shape[-1]
        there = F.conv2d(frame.permute(0, 3, 1, 2), weight, bias, stride).flatten(2).transpose(1, 2)
        torch.testing.assert_close(patch(frame), there)
    block = net.spatial.decoder.blocks[1]  # two of the four are the encoder's
    assert torch.equal(block.attn.qkv.weight, tensors["image_encoder.blocks.3.attn.qkv.weight"])
    assert torch.equal(block.mlp[2].bias, tensors["image_encoder.blocks.3.mlp.fc2.bias"])
    assert torch.equal(
        net.context.motion.project.weight, tensors["motion_embed.flow_proj.0.weight"]
    )
    back = to_published(net)
    assert list(published_names(net).values()) == list(back)
    assert all(torch.equal(back[name], value) for name, value in tensors.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary_pos_embed": True}, "rotary_pos_embed"),
        ({"image_base_size": [3, 4]}, "do not fit"),
        ({"arch": ["vit_d2w64", "vit_d4w64", "transformer"]}, "is unknown"),
        ({"arch": ["vit_d2w64", "vit_d6w64", "mlp_d1w48"]}, "twice as many"),
    ],
)
def test_unknown_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_config({**SMALL, **changes}, "ddpm")
    with pytest.raises(UserError, match="has no arch"):
        read_config({k: v for k, v in SMALL.items() if k != "arch"}, "ddpm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tam": False}, "no temporal"),
        ({"norm": "pre"}, "norms"),
        ({"nulls": "learned"}, "null tokens"),
    ],
)
def test_models_that_the_release_has_not_are_not_exported(
    options: dict[str, Any], message: str
) -> None:
    published = read_config(SMALL, "ddpm")
    published.options.update(options)
    with pytest.raises(UserError, match=message):
        to_published(published.build(FOUR_FRAMES))


@pytest.mark.parametrize(
    ("size", "context", "message"),
    [
        ({"num_heads": 4}, {}, "width 64 has 1 heads, not 4"),
        ({"depth": 4}, {}, "twice as many"),
        ({}, {"conditions": {}}, "shapes of context.motion"),
        ({}, {"text_dim": None, "conditions": {"label": 7}}, "shapes of context.label.weight"),
    ],
)
def test_models_that_their_configuration_does_not_tell_are_not_exported(
    size: dict[str, int], context: dict[str, Any], message: str
) -> None:
    published = read_config(SMALL, "ddpm")
    changed = dataclasses.replace(
        published,
        size=dataclasses.replace(published.size, **size),
        context=dataclasses.replace(published.context, **context),
    )
    with pytest.raises(UserError, match=message):
        to_published(changed.build(FOUR_FRAMES))


# Folders


def write_text_encoder(folder: Path) -> None:
    """A tiny Phi whose names have the release's prefix, and a tokenizer of words, each in its subfolder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PhiConfig, PhiModel, PreTrainedTokenizerFast

    words = {"red": 0, "square": 1, "moves": 2, "[UNK]": 3}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "tokenizer")
    phi = PhiModel(PhiConfig(**PHI))
    write_json(folder / "text_encoder/config.json", PHI)
    tensors = {f"model.{name}": value for name, value in phi.state_dict().items()}
    tensors["lm_head.weight"] = torch.zeros(8, TEXT_DIM)
    save_file(tensors, folder / "text_encoder/model.safetensors", {"format": "pt"})


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline laid out as nova-d48w1024-osp480."""
    folder = tmp_path_factory.mktemp("nova-video")
    torch.manual_seed(0)
    vae = OpenSoraPlan(channels=(8, 8, 8, 8), num_groups=4)
    write_json(
        folder / "vae/config.json",
        {
            "_class_name": "AutoencoderKLOpenSora",
            "block_out_channels": [8, 8, 8, 8],
            "norm_num_groups": 4,
            "latent_channels": 4,
            "scaling_factor": 0.18215,
            "down_block_types": ["DownEncoderBlock2D"] * 2 + ["DownEncoderBlock3D"] * 2,
            "up_block_types": ["UpDecoderBlock3D"] * 4,
        },
    )
    save_file(vae.state_dict(), folder / "vae/diffusion_pytorch_model.safetensors")
    write_json(folder / "scheduler/scheduler_config.json", DDPM)
    write_json(folder / "transformer/config.json", SMALL)
    weights = {name: value.half() for name, value in seeded(released(SMALL)).items()}
    save_file(weights, folder / "transformer/diffusion_pytorch_model.safetensors")
    write_text_encoder(folder)
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory, video_folder: Path) -> Path:
    """A tiny pipeline laid out as nova-d48w768-sdxl1024, its weights pickled as training leaves them."""
    folder = tmp_path_factory.mktemp("nova-image")
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8] * 4,
        norm_num_groups=4,
        scaling_factor=0.13025,
    ).save_pretrained(folder / "vae")
    write_json(folder / "scheduler/scheduler_config.json", FLOW)
    given = {**SMALL, "video_base_size": [1, 1, 2], "video_mixer_rank": None}
    write_json(folder / "transformer/config.json", given)
    torch.save(seeded(released(given)), folder / "transformer/diffusion_pytorch_model.bin")
    for name in ("text_encoder", "tokenizer"):
        (folder / name).symlink_to(video_folder / name)
    return folder


def sample(checkpoint: Path, out: Path, *options: str) -> int:
    """Run `arvid sample` for one clip, cheaply."""
    cheap = ["--count", "1", "--diffusion-steps", "2", "--num-sets", "1"]
    where = ["--checkpoint", str(checkpoint), "--out", str(out)]
    return main(["sample", *where, *cheap, *options])


def with_tokenizer(folder: Path, target: Path) -> Path:
    """A text encoder's folder that holds its tokenizer too."""
    target.mkdir()
    for part in ("text_encoder", "tokenizer"):
        for path in (folder / part).iterdir():
            (target / path.name).symlink_to(path)
    return target


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, video_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("imported") / "nova.ckpt"
    assert main(["import", "nova", str(video_folder), str(out)]) == 0
    return out


def test_an_imported_video_model_samples(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(imported, tmp_path, "--prompt", "red square moves", "--frames", "5") == 0
    assert (tmp_path / "000.mp4").is_file()
    assert "5 frames" in capsys.readouterr().out


TASKS = {
    "text to image": ["--prompt", "red", "--frames", "1"],
    "text and image to video": ["--first-frames", "IMAGE", "--prompt", "red", "--frames", "9"],
    "continuation": ["--first-frames", "VIDEO", "--num-first-frames", "9", "--frames", "17"],
    "longer than trained": ["--prompt", "red", "--frames", "49"],
    "longer than trained, by a window": ["--prompt", "red", "--frames", "49", "--overlap", "4"],
    "continuation by a window": [
        *("--first-frames", "VIDEO", "--num-first-frames", "17"),
        *("--frames", "49", "--overlap", "4", "--motion", "2"),
    ],
}


@pytest.mark.parametrize("task", TASKS)
def test_tasks(imported: Path, tmp_path: Path, task: str) -> None:
    write_video(tmp_path / "video.mp4", np.full((17, 32, 64, 3), 90, np.uint8), 8)
    (tmp_path / "image.png").write_bytes(encode_png(np.full((32, 64, 3), 90, np.uint8)))
    files = {"VIDEO": str(tmp_path / "video.mp4"), "IMAGE": str(tmp_path / "image.png")}
    options = [files.get(option, option) for option in TASKS[task]]
    assert sample(imported, tmp_path, *options) == 0
    num_frames = int(options[options.index("--frames") + 1])
    if num_frames == 1:
        assert (tmp_path / "000.png").is_file()
    else:
        assert read_video(tmp_path / "000.mp4").frames.shape == (num_frames, 32, 64, 3)


def test_frames_that_cannot_be_decoded_are_refused_before_they_are_drawn(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--prompt", "red", "--frames", "21", "--out", str(tmp_path / "out")]
    assert main(["sample", "--checkpoint", str(imported), *words]) == 2
    assert "21 frames do not fit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_image_of_another_size_is_resized_and_that_is_said(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(encode_png(np.full((48, 48, 3), 200, np.uint8)))
    options = ["--first-frames", str(image), "--frames", "5", "--negative-prompt", "moves"]
    assert sample(imported, tmp_path, *options) == 0
    assert "resized from 48x48 and centre-cropped to 64x32" in capsys.readouterr().out
    assert (tmp_path / "000.mp4").is_file()


def test_an_imported_model_is_the_released_one(imported: Path, video_folder: Path) -> None:
    model = load_generator(imported)
    net = model.paradigm
    there = load_file(video_folder / "transformer/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value.half(), there[name]) for name, value in to_published(net).items())
    assert model.clip_shape == (33, 32, 64)
    assert net.temporal.base_frames == 8
    assert model.sampling.guidance == 5
    vae = load_file(video_folder / "vae/diffusion_pytorch_model.safetensors")
    assert all(
        torch.equal(value, vae[name]) for name, value in model.tokenizer.state_dict().items()
    )
    condition = model.conditioner(caption=["", "red square"])
    assert condition.text_mask.sum(1).tolist() == [0, 2]
    phi = load_file(video_folder / "text_encoder/model.safetensors")
    assert any(
        torch.equal(p, phi["model.layers.0.mlp.fc1.weight"])
        for p in model.conditioner.text.model.parameters()
    )


def test_a_model_goes_out_as_it_came_in(imported: Path, video_folder: Path, tmp_path: Path) -> None:
    assert main(["export", "nova", str(imported), str(tmp_path / "half"), "--half"]) == 0
    name = "transformer/diffusion_pytorch_model.safetensors"
    before, after = load_file(video_folder / name), load_file(tmp_path / "half" / name)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    out = tmp_path / "whole"
    assert main(["export", "nova", str(imported), str(out)]) == 0
    for part, given in (
        ("transformer", SMALL),
        ("vae", json.loads((video_folder / "vae/config.json").read_text())),
    ):
        written = json.loads((out / part / "config.json").read_text())
        assert {key: written[key] for key in given} == given
    import_file(out, tmp_path / "again.ckpt")
    again = load_generator(tmp_path / "again.ckpt").state_dict()
    assert all(torch.equal(v, again[k]) for k, v in load_generator(imported).state_dict().items())
    for name, checkpoint in {"before": imported, "after": tmp_path / "again.ckpt"}.items():
        assert sample(checkpoint, tmp_path / name, "--prompt=red square", "--frames=1") == 0
    sheets = [(tmp_path / name / "sheet.png").read_bytes() for name in ("before", "after")]
    assert sheets[0] == sheets[1]


def test_an_exported_folder_has_the_index_and_links_of_the_release(
    imported: Path, video_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for _ in range(2):  # links that are there stay
        assert main(["export", "nova", str(imported), str(tmp_path)]) == 0
    assert "tokenizer (a link)" in capsys.readouterr().out
    index = json.loads((tmp_path / "model_index.json").read_text())
    stated = json.loads((video_folder / "tokenizer/tokenizer_config.json").read_text())
    assert index.pop("_diffusers_version")
    assert index == {
        "_class_name": "NOVAPipeline",
        "transformer": ["__transformer__", "NOVATransformer3DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "vae": ["__vae__", "AutoencoderKLOpenSora"],
        "text_encoder": ["__text_encoder__", "PhiEncoderModel"],
        "tokenizer": ["transformers", stated["tokenizer_class"]],
    }
    for part in ("text_encoder", "tokenizer"):
        assert (tmp_path / part).readlink() == (video_folder / part).resolve()


def test_diffusers_and_transformers_read_the_parts_of_an_export(
    image_folder: Path, tmp_path: Path
) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from transformers import AutoModel, AutoTokenizer

    import_file(image_folder, tmp_path / "nova.ckpt")
    out = tmp_path / "out"
    assert main(["export", "nova", str(tmp_path / "nova.ckpt"), str(out)]) == 0
    vae, given = (
        AutoencoderKL.from_pretrained(folder, subfolder="vae") for folder in (out, image_folder)
    )
    assert vae.config.scaling_factor == given.config.scaling_factor
    assert all(torch.equal(v, vae.state_dict()[k]) for k, v in given.state_dict().items())
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(out, subfolder="scheduler")
    assert scheduler.config.num_train_timesteps == 1000
    assert AutoModel.from_pretrained(out, subfolder="text_encoder").config.hidden_size == TEXT_DIM
    assert AutoTokenizer.from_pretrained(out, subfolder="tokenizer")("red square").input_ids


def test_an_image_model_of_flow_matching_samples(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "image.ckpt"
    assert main(["import", "nova", str(image_folder), str(out)]) == 0
    text = capsys.readouterr().out
    assert "none missing, none left over" in text
    assert "text encoder" in text
    model = load_generator(out)
    assert model.paradigm.head.process == "flow"
    assert model.clip_shape == (1, 32, 64)
    assert sample(out, tmp_path, "--prompt", "red") == 0
    assert (tmp_path / "000.png").is_file()
    assert main(["export", "nova", str(out), str(tmp_path / "back")]) == 0
    again = tmp_path / "again.ckpt"
    import_file(tmp_path / "back", again, text=with_tokenizer(image_folder, tmp_path / "text"))
    states = [load_generator(path).state_dict() for path in (out, again)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_long_prompt_is_cut_and_that_is_said(
    imported: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_generator(imported)
    condition = model.conditioner(caption=["red " * 9])
    assert condition.text_mask.sum() == TEXT_LEN
    assert "9 tokens: only the first 6" in caplog.text
    torch.testing.assert_close(condition.text, model.conditioner(caption=["red " * TEXT_LEN]).text)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("transformer/config.json", "no transformer/config.json"),
        ("transformer/diffusion_pytorch_model.safetensors", "transformer has no diffusion"),
        ("scheduler/scheduler_config.json", "no scheduler/scheduler_config.json"),
        ("vae/config.json", "no vae/config.json"),
        ("text_encoder/config.json", "no text_encoder/config.json"),
        ("tokenizer/tokenizer_config.json", "no tokenizer/tokenizer_config.json"),
    ],
)
def test_a_missing_part_is_named(
    video_folder: Path, tmp_path: Path, missing: str, message: str
) -> None:
    folder = copy_but(video_folder, tmp_path / "folder", leave_out=missing)
    with pytest.raises(UserError, match=message):
        import_file(folder, tmp_path / "out.ckpt")
    assert not (tmp_path / "out.ckpt").exists()


def test_all_weights_may_be_pickled(video_folder: Path, tmp_path: Path) -> None:
    folder = copy_but(video_folder, tmp_path / "folder", leave_out="")
    for part, name in (
        ("transformer", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        file = folder / part / f"{name}.safetensors"
        prefix = "pytorch_" if name == "model" else ""
        torch.save(load_file(file), file.with_name(f"{prefix}{name}.bin"))
        file.unlink()
    moves = import_file(folder, tmp_path / "pickled.ckpt").moves
    assert set(moves) == set(import_file(video_folder, tmp_path / "safe.ckpt").moves)
    models = [load_generator(tmp_path / f"{name}.ckpt") for name in ("pickled", "safe")]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    texts = [model.conditioner(caption=["red square"]).text for model in models]
    assert torch.equal(*texts)


def test_code_in_a_pickled_file_is_not_run(video_folder: Path, tmp_path: Path) -> None:
    name = "transformer/diffusion_pytorch_model.safetensors"
    folder = copy_but(video_folder, tmp_path / "folder", leave_out=name)
    torch.save({"x": print}, (folder / name).with_suffix(".bin"))
    with pytest.raises(UserError, match="can be read safely"):
        import_file(folder, tmp_path / "out.ckpt")


def test_a_published_folder_is_not_written_to(
    imported: Path, video_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vae").symlink_to(video_folder / "vae")
    assert main(["export", "nova", str(imported), str(tmp_path)]) == 2
    assert "vae is a link" in capsys.readouterr().err


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        import_file(tmp_path / "nothing", tmp_path / "out.ckpt")


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "'PNDMScheduler'; supported are DDPMScheduler and"),
        ({**DDPM, "beta_schedule": "linear"}, "beta_schedule is 'linear'"),
        ({**DDPM, "clip_sample": True}, "clip_sample is True"),
        ({**FLOW, "use_dynamic_shifting": True}, "use_dynamic_shifting is True"),
    ],
)
def test_another_scheduler_is_refused(
    video_folder: Path, tmp_path: Path, scheduler: dict[str, Any], message: str
) -> None:
    name = "scheduler/scheduler_config.json"
    folder = copy_but(video_folder, tmp_path / "folder", leave_out=name)
    write_json(folder / name, scheduler)
    with pytest.raises(UserError, match=message):
        import_file(folder, tmp_path / "out.ckpt")


def test_tensors_that_do_not_fit_are_listed(video_folder: Path, tmp_path: Path) -> None:
    name = "transformer/diffusion_pytorch_model.safetensors"
    folder = copy_but(video_folder, tmp_path / "folder", leave_out=name)
    tensors = load_file(video_folder / name)
    del tensors["image_encoder.norm.bias"]
    tensors["extra"] = torch.zeros(1)
    tensors["image_decoder.head.bias"] = torch.zeros(3)
    save_file(tensors, folder / name)
    with pytest.raises(UserError, match="3 of its tensors do not fit") as caught:
        import_file(folder, tmp_path / "out.ckpt")
    for part in (
        "missing image_encoder.norm.bias",
        "unexpected extra",
        "is \\(3,\\), not \\(16,\\)",
    ):
        assert part.replace("\\", "") in str(caught.value)


def test_another_text_encoder_than_the_transformer_wants_is_refused(
    video_folder: Path, tmp_path: Path
) -> None:
    name = "text_encoder/config.json"
    folder = copy_but(video_folder, tmp_path / "folder", leave_out=name)
    given = json.loads((video_folder / name).read_text())
    write_json(folder / name, {**given, "hidden_size": 32})
    with pytest.raises(UserError, match="features have 32 numbers, but the transformer needs 16"):
        import_file(folder, tmp_path / "out.ckpt")


def copy_but(source: Path, target: Path, leave_out: str) -> Path:
    """A folder of links to the files of another, without one of them."""
    for path in source.rglob("*"):
        name = path.relative_to(source)
        if path.is_file() and str(name) != leave_out:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to(path)
    return target
