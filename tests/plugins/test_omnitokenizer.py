"""omnitokenizer: names and numbers of the published network, its results on given weights, files, refusals."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arvid.cli import main
from arvid.contracts import TokenGrid, UserError
from arvid.tokenizers.omnitokenizer import OmniTokenizer, published
from arvid.tokenizers.omnitokenizer.network import NearbyPatches, Transformer
from arvid.training.export import load_tokenizer

SMALL: dict[str, Any] = {
    "dim": 24,
    "encoder_blocks": "tw",
    "decoder_blocks": "tt",
    "temporal_depth": 1,
    "num_heads": 2,
    "head_dim": 8,
    "hidden": 64,
    "window": 2,
    "strides": (2, 4, 4),
    "num_codes": 40,
    "channels": 4,
}
ARGUMENTS: dict[str, Any] = {
    "embedding_dim": 24,
    "enc_block": "tw",
    "dec_block": "tt",
    "spatial_depth": 2,
    "temporal_depth": 1,
    "heads": 2,
    "dim_head": 8,
    "ff_mult": 4.0,
    "twod_window_size": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "n_codes": 40,
    "codebook_dim": 4,
    "patch_embed": "linear",
    "spatial_pos": "rope",
    "l2_code": True,
    "use_vae": False,
    "use_external_codebook": False,
    "casual_in_temporal_transformer": True,
    "casual_in_peg": True,
    "resolution": 256,
    "data_path": ["somewhere"],
}
"""Arguments of the training, as the published files have them, but with small sizes."""
IDS = """1 1 19 37 16 4 8 26 19 10 18 11 19 19 20 8 6 19 19 18 8 20 10 14 16 16 16 8 20 10 14 19
10 7 19 19 18 34 14 10 14 10 25 19 10 25 35 6 1 11 4 11 7 11 25 39 19 19 14 4 1 39 10 8
8 17 14 10 8 4 5 1 37 20 20 6 5 37 4 10 1 16 10 20 32 4 20 1 10 4 14 1 6 37 30 4"""
PIXELS = """
0.09192 0.89075 -0.17252 0.88659 0.31073 0.01923 -0.25635 0.30445 -0.10918 -0.62934 0.32678 0.53648
0.55261 0.44007 -0.08666 0.00162 0.03765 0.49809 0.10964 0.19443 -0.3494 0.08866 1.0 0.29998
0.01311 -0.41332 -0.39699 -0.0668 0.37097 -0.66653 0.50763 -0.47429 0.34214 -0.01797 0.29193 0.4066
-0.25812 0.46112 0.04281 0.77249 0.06803 -0.38469 0.1541 0.12376 0.72957 -0.41825 0.1034 0.53463
-0.14445 0.41343 -0.13706 -0.42652 -0.27831 0.73824 -0.14636 0.59101 -0.73833 0.49713 0.96881 0.18843
-0.68847 -0.68424 -0.28462 0.00566 -0.29592 -0.69818 0.5556 0.1298 0.76967 -0.28504 0.87568 -0.16909
"""
"""Ids and every 3rd frame, 7th row and 11th column of the reconstruction, from the released code (VQGAN of
FoundationVision/OmniTokenizer, commit 701b619) on the same weights and clips."""

Weights = dict[str, Tensor]
Convert = Callable[..., OmniTokenizer]


@pytest.fixture(scope="module")
def made(formula_weights: Callable[..., Weights]) -> Weights:
    """A small network's weights by their published names."""
    with torch.device("meta"):
        tokenizer = OmniTokenizer(**SMALL)
    own, names = tokenizer.state_dict(), published.published_names(tokenizer)
    weights = formula_weights({names[name]: tuple(value.shape) for name, value in own.items()})
    for name in weights:
        if name.endswith(("gamma", "_scale")):
            weights[name] += 1
        if name.startswith("decoder.to_pixels") and name.endswith("weight"):
            weights[name] *= 0.2  # fewer pixels beyond the range
    return weights


@pytest.fixture
def weights(made: Weights) -> Weights:
    return dict(made)


@pytest.fixture
def video(noise: Callable[..., Tensor]) -> Tensor:
    return noise((2, 3, 5, 16, 16), -1)


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    """Imports a file with the layout of the published files."""

    def run(
        weights: dict[str, Any], others: dict[str, Any] | None = None, **arguments: Any
    ) -> OmniTokenizer:
        attention = "encoder.enc_spatial_transformer.layers.0.1"
        unused = {
            "codebook.N": torch.zeros(40),
            "image_discriminator.model0.0.bias": torch.ones(2),
            f"{attention}.spatial_rel_pos_bias.net.2.bias": torch.ones(2),
            f"{attention}.context_norm.gamma": torch.ones(24),
            "encoder.enc_spatial_transformer.layers.1.1.relative_position_index": torch.zeros(4, 4),
        }
        content = {
            "state_dict": {**weights, **unused},
            "hyper_parameters": {"args": argparse.Namespace(**{**ARGUMENTS, **arguments})},
            "epoch": 3,
        }
        torch.save({**content, **(others or {})}, tmp_path / "in.ckpt")
        published.import_file(tmp_path / "in.ckpt", tmp_path / "out.safetensors")
        tokenizer = load_tokenizer(tmp_path / "out.safetensors")
        assert isinstance(tokenizer, OmniTokenizer)
        return tokenizer

    return run


def test_published_names_and_numbers() -> None:
    with torch.device("meta"):
        tokenizer = OmniTokenizer()
    own, names = tokenizer.state_dict(), published.published_names(tokenizer)
    assert len(own) == 231
    assert len(set(names.values())) == len(own)
    learned = [value for name, value in own.items() if not name.endswith(".beta")]
    assert sum(value.numel() for value in learned) == 51_620_440
    shapes = {names[name]: tuple(value.shape) for name, value in own.items()}
    assert shapes["encoder.to_patch_emb_first_frame.2.weight"] == (512, 192)
    assert shapes["encoder.to_patch_emb.1.bias"] == (768,)
    assert shapes["encoder.enc_spatial_transformer.layers.0.0.dsconv.weight"] == (512, 1, 3, 3, 3)
    table = "encoder.enc_spatial_transformer.layers.3.1.relative_position_bias_table"
    assert shapes[table] == (225, 8)
    assert shapes["encoder.enc_temporal_transformer.layers.3.1.to_kv.weight"] == (1024, 512)
    assert shapes["decoder.dec_spatial_transformer.layers.3.3.1.weight"] == (2730, 512)
    assert shapes["decoder.dec_temporal_transformer.norm_out.gamma"] == (512,)
    assert shapes["decoder.to_pixels.0.weight"] == (768, 512)
    assert shapes["pre_vq_conv.1.weight"] == (8, 512)
    assert shapes["codebook.embeddings"] == (8192, 8)
    clip = torch.empty(1, 3, 17, 64, 128, device="meta")
    tokens = tokenizer.encode(clip)
    assert tokens.shape == (1, 5, 8, 16)
    assert tokenizer.decode(tokens).shape == clip.shape


def test_results_of_the_released_code(weights: Weights, video: Tensor, convert: Convert) -> None:
    tokenizer = convert(weights)
    tokens = tokenizer.encode(video)
    assert tokens.shape == (2, 3, 4, 4)
    assert tokens.flatten().tolist() == [int(number) for number in IDS.split()]
    decoded = tokenizer.decode(tokens)[:, :, ::3, ::7, ::11].flatten()
    expected = torch.tensor([float(number) for number in PIXELS.split()])
    torch.testing.assert_close(decoded, expected, rtol=0, atol=2e-5)


def test_both_spellings_of_the_arguments(
    weights: Weights, video: Tensor, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("in_temporal_transformer", "in_peg"):
        monkeypatch.delitem(ARGUMENTS, f"casual_{name}")
        monkeypatch.setitem(ARGUMENTS, f"causal_{name}", True)
    tokens = convert(weights).encode(video)
    assert tokens.flatten().tolist() == [int(number) for number in IDS.split()]


def test_frames_that_are_not_square(weights: Weights, convert: Convert) -> None:
    """Without the layers that connect windows, each half of a frame is encoded as if it were a frame by itself."""
    tokenizer = convert(weights)
    for layer in tokenizer.encoder_frame.layers[:1]:
        layer.forward = lambda x, grid: x  # type: ignore[method-assign]
    for module in tokenizer.encoder_frames.modules():
        if isinstance(module, NearbyPatches):
            module.forward = torch.zeros_like  # type: ignore[method-assign]
    video = torch.rand(1, 3, 3, 8, 16) * 2 - 1
    whole = tokenizer.latents(video)
    halves = [tokenizer.latents(half) for half in video.chunk(2, dim=-1)]
    torch.testing.assert_close(whole, torch.cat(halves, dim=3))


def test_attention_over_frames_is_causal_but_its_convolution_is_not() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"hidden": 16, "num_heads": 2, "head_dim": 4, "window": 1}
    transformer = Transformer("t", 8, over="frames", **options)
    x = torch.randn(1, 4, 2, 3, 8)
    changed = torch.cat([x[:, :3], torch.randn(1, 1, 2, 3, 8)], dim=1)
    assert not torch.allclose(transformer(x)[:, :3], transformer(changed)[:, :3], atol=1e-3)
    transformer.layers[0].nearby = None
    torch.testing.assert_close(transformer(x)[:, :3], transformer(changed)[:, :3])


def test_latents_have_length_one_and_ids_are_of_the_nearest_codes(
    weights: Weights, video: Tensor, convert: Convert
) -> None:
    tokenizer = convert(weights)
    assert not tokenizer.spec.exact_prefix
    latents = tokenizer.latents(video)
    torch.testing.assert_close(latents.norm(dim=-1), torch.ones(2, 3, 4, 4))
    distances = (latents[..., None, :] - tokenizer.codes).norm(dim=-1)
    assert torch.equal(tokenizer.encode(video), distances.argmin(-1))


def test_clips_and_options_that_do_not_fit() -> None:
    with torch.device("meta"):
        tokenizer = OmniTokenizer(**SMALL)
    with pytest.raises(UserError, match=r"takes 1 \+ 2·n frames"):
        tokenizer.encode(torch.zeros(1, 3, 4, 16, 16, device="meta"))
    with pytest.raises(UserError, match=r"windows of 2x2 tokens.* multiple of 8 pixels"):
        tokenizer.encode(torch.zeros(1, 3, 5, 16, 20, device="meta"))
    tokenizer.check_grid(TokenGrid(1, 4, 6))
    with pytest.raises(UserError, match="encoder_blocks must be 1 to 256 letters t and w"):
        OmniTokenizer(**{**SMALL, "encoder_blocks": "tan"})
    with pytest.raises(UserError, match="dim=24 must be a multiple of num_heads=5"):
        OmniTokenizer(**{**SMALL, "num_heads": 5})


# --- files


def test_the_command(
    weights: Weights, convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(weights)
    command = ["import", "omnitokenizer", f"{tmp_path}/in.ckpt", f"{tmp_path}/again.safetensors"]
    assert main(command) == 0
    assert "codebook, epoch, image_discriminator: not needed" in capsys.readouterr().out
    written = (tmp_path / name for name in ("out.safetensors", "again.safetensors"))
    assert len({file.read_bytes() for file in written}) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"n_codes": 41}, r"codebook.embeddings is \(40, 4\), not \(41, 4\)"),
        ({"temporal_depth": 2}, "missing decoder.dec_temporal_transformer.layers.1.0.dsconv.bias"),
        ({"use_vae": True}, "use_vae is True, not False"),
        ({"use_vae": torch.zeros(2)}, r"use_vae is tensor\(\[0., 0.\]\), not False"),
        ({"spatial_pos": "rel"}, "spatial_pos is 'rel', not 'rope'"),
        ({"casual_in_peg": False}, "causal_in_peg is False, not True"),
        ({"patch_embed": "cnn"}, "patch_embed is 'cnn', not 'linear'"),
        ({"enc_block": "ta"}, "encoder_blocks must be"),
        ({"enc_block": 3}, "encoder_blocks"),
        ({"embedding_dim": 10**15}, "dim must be 1 to 16384"),
        ({"patch_size": "many"}, "patch_size must be a number above 0, not 'many'"),
        ({"patch_size": 4.5}, "strides"),
        ({"ff_mult": float("nan")}, "ff_mult must be a number above 0, not nan"),
    ],
)
def test_arguments_of_something_else(
    arguments: dict[str, Any], reason: str, weights: Weights, convert: Convert, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=f"in.ckpt: not a VQ tokenizer of OmniTokenizer: .*{reason}"
    ):
        convert(weights, **arguments)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"hyper_parameters": None}, "'hyper_parameters' is a NoneType, not a dict"),
        ({"state_dict": [1]}, "'state_dict' is a list, not a dict"),
        ({"hyper_parameters": {}}, "lack embedding_dim, enc_block"),
        ({"state_dict": {}}, "missing codebook.embeddings"),
    ],
)
def test_files_without_something(
    others: dict[str, Any], reason: str, weights: Weights, convert: Convert
) -> None:
    with pytest.raises(UserError, match=reason):
        convert(weights, others)


def test_code_in_a_file_is_not_run(weights: Weights, convert: Convert, hostile: Any) -> None:
    with pytest.raises(UserError, match="embeddings is mkdtemp, not floats"):
        convert({**weights, "codebook.embeddings": hostile})
    for name in ("embedding_dim", "patch_size", "use_vae", "enc_block"):
        with pytest.raises(UserError, match="not a VQ tokenizer of OmniTokenizer"):
            convert(weights, **{name: hostile})
    odd: dict[Any, Any] = {**weights, 7: hostile}
    convert(odd, {"optimizer_states": hostile, 3: {}})  # type: ignore[dict-item]  # not needed
    assert not hostile.has_run
