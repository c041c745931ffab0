"""pretrained: every class of diffusers that arvid knows, tiny and random: calls, scale, frame counts, files."""

from __future__ import annotations

import functools
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from arvid.cli import main
from arvid.contracts import UserError
from arvid.tokenizers import pretrained
from arvid.tokenizers.pretrained import Pretrained
from arvid.tokenizers.pretrained.conventions import CONVENTIONS, SCALE, SHIFT, STD, Convention
from arvid.training.export import fingerprint, load_tokenizer, save_tokenizer
from arvid.training.generator_module import load_generator

IMAGES: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "latent_channels": 4,
}
KL: dict[str, Any] = {
    **IMAGES,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 2,
}
FOUR: dict[str, Any] = {
    "block_out_channels": [8] * 4,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
}
WAN: dict[str, Any] = {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
LTX: dict[str, Any] = {
    "latent_channels": 8,
    "block_out_channels": [8] * 4,
    "decoder_block_out_channels": [8] * 4,
    "layers_per_block": [1] * 5,
    "decoder_layers_per_block": [1] * 5,
}
TINY: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "kl": ("AutoencoderKL", KL, (1, 2, 2)),
    "kl-shifted": (
        "AutoencoderKL",
        {**KL, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        (1, 2, 2),
    ),
    "kl-per-channel": (
        "AutoencoderKL",
        {**KL, "scaling_factor": 0.5, "latents_mean": [1, 2, 3, 4], "latents_std": [5, 6, 7, 8]},
        (1, 2, 2),
    ),
    "asymmetric": (
        "AsymmetricAutoencoderKL",
        {
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "down_block_out_channels": [8, 8],
            "up_block_out_channels": [8, 8],
            "norm_num_groups": 2,
        },
        (1, 2, 2),
    ),
    "tiny": (
        "AutoencoderTiny",
        {
            "encoder_block_out_channels": [8] * 3,
            "decoder_block_out_channels": [8] * 3,
            "num_encoder_blocks": [1] * 3,
            "num_decoder_blocks": [1] * 3,
        },
        (1, 4, 4),
    ),
    "dc": (
        "AutoencoderDC",
        {
            "latent_channels": 4,
            "attention_head_dim": 2,
            "encoder_block_types": ["ResBlock", "EfficientViTBlock"],
            "decoder_block_types": ["ResBlock", "EfficientViTBlock"],
            "encoder_block_out_channels": [8, 8],
            "decoder_block_out_channels": [8, 8],
            "encoder_layers_per_block": [1, 1],
            "decoder_layers_per_block": [1, 1],
            "encoder_qkv_multiscales": [[], [5]],
            "decoder_qkv_multiscales": [[], [5]],
            "scaling_factor": 0.41407,
        },
        (1, 2, 2),
    ),
    "svd": (
        "AutoencoderKLTemporalDecoder",
        {**IMAGES, "block_out_channels": [32, 32]},
        (1, 2, 2),
    ),
    "cogvideox": ("AutoencoderKLCogVideoX", FOUR, (4, 8, 8)),
    "cosmos": (
        "AutoencoderKLCosmos",
        {
            "encoder_block_out_channels": [8] * 4,
            "decode_block_out_channels": [8] * 4,
            "attention_resolutions": [8],
            "resolution": 64,
            "num_layers": 1,
        },
        (8, 8, 8),
    ),
    "hunyuan": ("AutoencoderKLHunyuanVideo", FOUR, (4, 8, 8)),
    "hunyuan15": (
        "AutoencoderKLHunyuanVideo15",
        {"latent_channels": 4, "block_out_channels": [8] * 5, "layers_per_block": 1},
        (4, 16, 16),
    ),
    "ltx": ("AutoencoderKLLTXVideo", LTX, (8, 32, 32)),
    "ltx-denoising": (
        "AutoencoderKLLTXVideo",
        {  # as LTX-Video 0.9.5 does it
            "latent_channels": 8,
            "block_out_channels": [4, 8, 8, 8, 8],
            "down_block_types": ["LTXVideo095DownBlock3D"] * 4,
            "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
            "spatio_temporal_scaling": [True] * 4,
            "layers_per_block": [1] * 5,
            "decoder_block_out_channels": [8, 8, 8],
            "decoder_layers_per_block": [1] * 4,
            "decoder_spatio_temporal_scaling": [True] * 3,
            "decoder_inject_noise": [True] * 4,
            "upsample_residual": [True] * 3,
            "upsample_factor": [1] * 3,
            "timestep_conditioning": True,
        },
        (8, 32, 32),
    ),
    "ltx2": (
        "AutoencoderKLLTX2Video",
        {
            "latent_channels": 8,
            "block_out_channels": [4, 8, 16, 32],
            "decoder_block_out_channels": [8, 16, 32],
            "layers_per_block": [1] * 5,
            "decoder_layers_per_block": [1] * 4,
        },
        (8, 32, 32),
    ),
    "easyanimate": ("AutoencoderKLMagvit", FOUR, (4, 8, 8)),
    "easyanimate-clip-norm": (
        "AutoencoderKLMagvit",
        {**FOUR, "spatial_group_norm": False},
        (4, 8, 8),
    ),
    "mochi": (
        "AutoencoderKLMochi",
        {
            "encoder_block_out_channels": [32] * 4,
            "decoder_block_out_channels": [32] * 4,
            "layers_per_block": [1] * 5,
        },
        (6, 8, 8),
    ),
    "wan": ("AutoencoderKLWan", WAN, (4, 8, 8)),
    "wan22": (
        "AutoencoderKLWan",
        {
            **WAN,
            "decoder_base_dim": 4,
            "z_dim": 4,
            "latents_mean": [0.1, 0.2, 0.3, 0.4],
            "latents_std": [1.0, 2.0, 3.0, 4.0],
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
        },
        (4, 16, 16),
    ),
}
"""Class, configuration and the strides that the real one of that layout has; each has a few thousand weights."""
every = pytest.mark.parametrize("kind", TINY)


@functools.cache
def tiny(kind: str) -> Pretrained:
    class_name, config, _ = TINY[kind]
    torch.manual_seed(0)
    return Pretrained(class_name, config).requires_grad_(False).eval()


def some_video(tokenizer: Pretrained, latent_frames: int) -> torch.Tensor:
    frames, rows, columns = tokenizer.spec.strides
    generator = torch.Generator().manual_seed(1)
    size = (1 + (latent_frames - 1) * frames, max(2 * rows, 16), max(2 * columns, 16))
    return torch.rand(2, 3, *size, generator=generator) * 2 - 1


def test_every_known_class_is_tested() -> None:
    assert {class_name for class_name, _, _ in TINY.values()} == CONVENTIONS.keys()


@every
def test_shapes_are_those_of_the_spec(kind: str) -> None:
    tokenizer = tiny(kind)
    spec = tokenizer.spec
    assert (spec.type, spec.strides, spec.causal) == ("continuous", TINY[kind][2], True)
    video = some_video(tokenizer, 3)
    grid = spec.grid(*video.shape[2:])
    tokens = tokenizer.encode(video)
    assert tokens.shape == (2, grid.t, grid.h, grid.w, spec.size)
    assert torch.equal(tokenizer.encode(video), tokens)
    back = tokenizer.decode(tokens)
    assert back.shape == video.shape
    assert back.abs().max() <= 1
    assert torch.equal(tokenizer.decode(tokens), back)
    assert tokenizer.encode(video[:, :, :1]).shape[1] == 1


@every
def test_prefixes_agree_where_the_spec_says_so(kind: str) -> None:
    tokenizer = tiny(kind)
    video = some_video(tokenizer, 5)[:1]
    whole = tokenizer.encode(video)
    shorter = video[:, :, : 1 + 2 * tokenizer.spec.strides[0]]
    differences = [
        (tokenizer.encode(part)[:, 0] - whole[:, 0]).abs().max() / whole.std()
        for part in (video[:, :, :1], shorter)
    ]
    assert (max(differences) < 1e-4) == tokenizer.spec.exact_prefix


@every
def test_tokens_are_latents_in_the_scale_of_the_class(kind: str) -> None:
    """The pipelines' formula, written out from what the configuration or the buffers hold."""
    tokenizer = tiny(kind)
    autoencoder = tokenizer.autoencoder
    for name, buffer in autoencoder.named_buffers(recurse=False):
        if name.startswith("latents_"):
            buffer.copy_(torch.linspace(1, 2, len(buffer)))
    video = some_video(tokenizer, 3)[:1]
    by_frame = CONVENTIONS[TINY[kind][0]].frame_by_frame
    pixels = video[0].transpose(0, 1) if by_frame else video
    encoded = autoencoder.encode(pixels, return_dict=False)[0]
    sure = not hasattr(encoded, "std") or isinstance(encoded, torch.Tensor)
    latent = encoded if isinstance(encoded, torch.Tensor) else encoded.mode()
    spread = latent if sure else encoded.std
    if by_frame:
        latent, spread = (x.transpose(0, 1)[None] for x in (latent, spread))

    def value(name: str, default: float) -> torch.Tensor:
        buffers = dict(autoencoder.named_buffers(recurse=False))
        found = buffers.get(name, autoencoder.config.get(name))
        found = torch.tensor(default) if found is None else torch.as_tensor(found)
        if found.ndim and len(found) > latent.shape[1]:  # Cosmos: channels x frames
            return found.view(latent.shape[1], -1)[None, :, : latent.shape[2], None, None]
        return found.view(1, -1, 1, 1, 1)

    shift = value("latents_mean", 0.0) + value("shift_factor", 0.0)
    factor = value("scaling_factor", 1.0) / value("latents_std", 1.0)
    tokens = tokenizer.encode(video)
    torch.testing.assert_close(
        tokens.movedim(-1, 1), (latent - shift) * factor, rtol=1e-4, atol=1e-4
    )
    if sure:
        with pytest.raises(UserError, match="has no posterior"):
            tokenizer.encode_posterior(video)
    else:
        mean, deviation = tokenizer.encode_posterior(video)
        assert torch.equal(mean, tokens)
        torch.testing.assert_close(deviation.movedim(-1, 1), spread * factor, rtol=1e-4, atol=1e-4)


@every
def test_decoding_undoes_the_scale(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the decoder is what came out of the encoder."""
    tokenizer = tiny(kind)
    video = some_video(tokenizer, 3)[:1]
    latent, _ = pretrained.encode(tokenizer.autoencoder, tokenizer.convention, video)
    given = []

    def decode(autoencoder: Any, convention: Convention, latent: torch.Tensor) -> torch.Tensor:
        given.append(latent)
        return video

    monkeypatch.setattr(pretrained, "decode", decode)
    tokenizer.decode(tokenizer.encode(video))
    torch.testing.assert_close(given[0], latent, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("class_name", CONVENTIONS)
def test_the_table_is_that_of_the_installed_diffusers(class_name: str) -> None:
    names = {*SHIFT, *SCALE, *STD}
    cls = getattr(diffusers, class_name)
    kinds = [kind for kind, (name, _, _) in TINY.items() if name == class_name]
    buffers = {name for name, _ in tiny(kinds[0]).autoencoder.named_buffers(recurse=False)}
    has = names & {*inspect.signature(cls.__init__).parameters, *buffers}
    assert {*CONVENTIONS[class_name].statistics} == has


# --- frame counts and streams


def test_cogvideox_takes_odd_numbers_of_latent_frames() -> None:
    """It decodes an even number into more frames than were encoded."""
    tokenizer = tiny("cogvideox")
    with pytest.raises(UserError, match=r"13 frames do not fit.*1 \+ 8·n"):
        tokenizer.encode(torch.zeros(1, 3, 13, 16, 16))
    with pytest.raises(UserError, match=r"13 frames do not fit"):
        tokenizer.decode(torch.zeros(1, 4, 2, 2, 4))


def test_cosmos_knows_the_scale_of_as_many_frames_as_its_configuration() -> None:
    tokenizer = tiny("cosmos")
    with pytest.raises(UserError, match="scale for only 16 latent frames, but the clip has 17"):
        tokenizer.decode(torch.zeros(1, 17, 1, 1, 16))


@pytest.mark.parametrize("kind", ["kl", "svd", "wan"])
def test_streams_are_the_whole_clip(kind: str) -> None:
    tokenizer = tiny(kind)
    video = some_video(tokenizer, 5)[:1]
    tokens = tokenizer.encode(video)
    chunks = video.split(tokenizer.spec.chunk_frames(video.shape[2], 2), dim=2)
    streamed = torch.cat(list(tokenizer.encode_stream(iter(chunks))), dim=1)
    torch.testing.assert_close(streamed, tokens)
    frames = torch.cat(list(tokenizer.decode_stream(iter(tokens.split(2, dim=1)))), dim=2)
    torch.testing.assert_close(frames, tokenizer.decode(tokens))


# --- files


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The folder that a tiny Wan autoencoder is published in."""
    folder = tmp_path / "wan"
    tiny("wan").autoencoder.save_pretrained(folder)
    return folder


@every
def test_round_trips_through_a_published_folder_and_a_tokenizer_file(
    kind: str, tmp_path: Path
) -> None:
    tokenizer = tiny(kind)
    tokenizer.autoencoder.save_pretrained(tmp_path / "published")
    loaded = load_tokenizer(f"pretrained:{tmp_path / 'published'}")
    save_tokenizer(loaded, tmp_path / "own.safetensors", {})
    again = load_tokenizer(tmp_path / "own.safetensors")
    assert fingerprint(tokenizer) == fingerprint(loaded) == fingerprint(again)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert again.spec == tokenizer.spec
    video = some_video(tokenizer, 1)[:1]
    assert torch.equal(again.encode(video), tokenizer.encode(video))


def test_a_file_in_half_precision_is_read_in_float32(published: Path) -> None:
    tiny("wan").autoencoder.save_pretrained(published, variant=None)
    weights = published / "diffusion_pytorch_model.safetensors"
    save_file({name: value.half() for name, value in load_file(weights).items()}, weights)
    loaded = load_tokenizer(f"pretrained:{published}")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_attention_of_old_files_is_found(tmp_path: Path) -> None:
    """Files of before diffusers 0.15 call the attention's layers otherwise."""
    tokenizer = tiny("kl")
    tokenizer.autoencoder.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, value in load_file(weights).items():
        for new_part, old_part in old.items():
            name = name.replace(f"attentions.0.{new_part}.", f"attentions.0.{old_part}.")
        tensors[name] = value
    assert "encoder.mid_block.attentions.0.proj_attn.bias" in tensors
    save_file(tensors, weights)
    assert fingerprint(load_tokenizer(f"pretrained:{tmp_path}")) == fingerprint(tokenizer)


def test_tensors_that_do_not_fit_are_listed(published: Path) -> None:
    weights = published / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["quant_conv.bias"]
    tensors["stranger"] = torch.zeros(2)
    tensors["post_quant_conv.bias"] = torch.zeros(3)
    save_file(tensors, weights)
    with pytest.raises(UserError) as raised:
        load_tokenizer(f"pretrained:{published}")
    for part in (str(published), "missing quant_conv.bias", "unexpected stranger"):
        assert part in str(raised.value)
    assert "post_quant_conv.bias is (3,), not (16,)" in str(raised.value)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"_class_name": "AutoencoderKLAllegro"}, "Supported: .*AutoencoderKLWan"),
        ({"_class_name": "os.system"}, "not a supported autoencoder of diffusers"),
        ({"dim_mult": "wide"}, "cannot be built"),
    ],
)
def test_configurations_that_do_not_fit(
    published: Path, changes: dict[str, Any], reason: str
) -> None:
    change_config(published, **changes)
    with pytest.raises(UserError, match=reason):
        load_tokenizer(f"pretrained:{published}")


def test_damaged_files(published: Path) -> None:
    (published / "diffusion_pytorch_model.safetensors").write_bytes(b"half a file")
    with pytest.raises(UserError, match="not a safetensors file"):
        load_tokenizer(f"pretrained:{published}")
    (published / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no _class_name"):
        load_tokenizer(f"pretrained:{published}")
    (published / "config.json").write_text("{")
    with pytest.raises(UserError, match="not a JSON file"):
        load_tokenizer(f"pretrained:{published}")


def test_a_tokenizer_that_is_not_published_this_way() -> None:
    with pytest.raises(UserError, match="vae3d cannot read published weights"):
        load_tokenizer("vae3d:somewhere")


def test_folders_that_are_none(published: Path) -> None:
    with pytest.raises(UserError, match=r"has no config.json.*a subfolder, as vae"):
        load_tokenizer(f"pretrained:{published.parent}")
    with pytest.raises(
        UserError, match="'/nowhere/at/all' is neither a folder nor a name on the hub"
    ):
        load_tokenizer("pretrained:/nowhere/at/all")


def test_a_hub_name_without_network_says_what_to_download(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as raised:
        load_tokenizer("pretrained:some/model/vae")
    for part in (
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "https://huggingface.co/some/model/tree/main/vae",
        "give that folder instead",
    ):
        assert part in str(raised.value)


def test_a_hub_name_in_the_cache_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, published: Path
) -> None:
    """The cache's layout: refs name a snapshot, which is a folder."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cache = tmp_path / "hub" / "models--some--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    (cache / "snapshots" / ("0" * 40)).mkdir(parents=True)
    published.rename(cache / "snapshots" / ("0" * 40) / "vae")
    loaded = load_tokenizer("pretrained:some/model/vae")
    assert fingerprint(loaded) == fingerprint(tiny("wan"))


# --- docs/tokenizers.md

PAGE = (Path(__file__).parents[2] / "docs" / "tokenizers.md").read_text()
ROWS = re.findall(
    r"^\| (A\w+) \|.*\| (\d+) x (\d+) x \d+ \| (\d+) \| (.*) \| (\w+) \|$", PAGE, re.M
)
LIKE_PUBLISHED: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "block_out_channels": [32] * 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "AsymmetricAutoencoderKL": {
        "down_block_out_channels": [32] * 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_out_channels": [32] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "AutoencoderKLTemporalDecoder": {
        "block_out_channels": [32] * 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
    },
}
"""Levels of the published ones where the defaults of diffusers are others."""


def test_the_page_lists_every_class() -> None:
    assert {row[0] for row in ROWS} == CONVENTIONS.keys()


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_the_page_says_what_the_published_layout_is(row: tuple[str, ...]) -> None:
    class_name, frames, space, channels, counts, prefix = row
    with torch.device("meta"):
        tokenizer = Pretrained(class_name, LIKE_PUBLISHED.get(class_name, {}))
    spec = tokenizer.spec
    assert spec.strides == (int(frames), int(space), int(space))
    assert spec.size == int(channels)
    assert spec.exact_prefix == (prefix == "exact")
    step = spec.strides[0] * tokenizer.convention.latent_step
    assert counts.split(",")[0] == ("any" if step == 1 else f"1 + {step}n")


def test_a_generator_is_trained_as_the_page_says(published: Path, tmp_path: Path) -> None:
    (command,) = re.findall(r"^```sh\narvid (.*?)\n```", PAGE, re.M | re.S)
    command, named = re.subn(r"pretrained:\S+", f"pretrained:{published}", command)
    assert named == 1
    arguments = shlex.split(command.replace("\\\n", " "))
    run = tmp_path / "run"
    fewer = [
        "--config=sizes/debug",
        "--data.train.init_args.num_clips=4",
        "--data.val.init_args.num_clips=4",
        "--data.clips_per_step=2",
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=1",
        "--trainer.val_check_interval=1",
        f"--run={run}",
    ]
    assert main([*arguments, *fewer]) == 0
    published.rename(tmp_path / "moved")  # the checkpoint holds the tokenizer
    model = load_generator(run)
    assert isinstance(model.tokenizer, Pretrained)
    assert model.tokenizer_hash == fingerprint(tiny("wan"))
    assert model.description["setting"]["tokenizer.continuous"] == model.tokenizer_hash[:16]
