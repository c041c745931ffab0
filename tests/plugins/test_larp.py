"""larp: names and numbers of the published network, its results on given weights, files, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from arvid.cli import main
from arvid.contracts import TokenGrid, UserError
from arvid.tokenizers.larp import Larp, published

SMALL: dict[str, Any] = {
    "rows": 4,
    "columns": 4,
    "dim": 64,
    "depth": 1,
    "num_heads": 1,
    "num_codes": 40,
    "channels": 4,
}
IDS = [0, 19, 34, 25, 15, 15, 25, 7, 38, 24, 15, 15, 32, 32, 7, 15]
PIXELS = """
0.18182 0.59942 -0.19054 -0.0968 -0.64839 0.04973 0.45144 0.08418 0.20634 -0.16989 0.31148 -0.55545 -0.46998
-0.16112 -0.02728 -0.39854 0.30298 -0.14366 0.43107 -0.30178 0.024 0.47325 0.36522 -0.17505 0.83365 -0.03222
-0.41786 -0.77809 0.24063 -0.30084 0.38216 0.28671 -0.35135 0.01091 0.07086 0.54913 0.54318 0.31671 0.03769
0.26069 0.27964 0.16477 0.39757 0.66536 -0.58887 0.23756 -0.10936 -0.44536 0.90103 0.3459 -0.81394 -0.16135
-0.34236 -0.79375 -0.66027 -0.50932 0.59029 0.40703 -0.89591 0.62749 -0.33974 0.33272 0.17328 0.11243 0.20993
-0.73464 -0.16762 0.14146 -0.22851 -0.10729 0.54478 -0.60462 -0.8144 0.01996 0.25524 0.02051 -0.05248 -0.37471
0.10948 -0.15447 -0.31803 -0.11338 -0.04773 0.34423 0.51234 0.20047 -0.00915 -0.88313 0.36259 -0.42308 0.17556
-0.12264 0.34008 -0.47902 0.26714 -0.12484 -0.40338 0.20953 0.37665 -0.66643 0.64746 0.58038 0.37787 0.13255
-0.2291 -0.19533 -0.33965 0.10483 -0.25471 -0.10533 0.51879 0.00733 -0.28952 -0.32841 0.20659 -0.16168 0.57936
0.33888 0.4497 -0.1321 0.56412 -0.35278 -0.89002 -0.32774 -0.68087 0.15991 0.27466 -0.12768 -0.13171 0.60818
-0.05625 -0.26254 0.35596 -0.28503 0.13514 0.55883 -0.56092 0.59703 0.52592 0.03995 0.37545 -0.64113 0.65126
0.00068
"""
"""Ids and every 7th frame, 37th row and 41st column of the reconstruction, from the released code (LARPTokenizer of
hywang66/LARP, commit 8aaed63, with timm 1.0.9) on the same weights and clip."""

Weights = dict[str, Tensor]
Convert = Callable[..., Larp]


@pytest.fixture(scope="module")
def made(formula_weights: Callable[..., Weights]) -> Weights:
    """A small network's weights by their published names. They have the published axes of size 1."""
    with torch.device("meta"):
        tokenizer = Larp(**SMALL)
    own, names = tokenizer.state_dict(), published.published_names(tokenizer)
    weights = formula_weights({names[name]: tuple(value.shape) for name, value in own.items()})
    weights[published.QUERIES] *= 8  # more ids
    weights["final_layer.linear.weight"] *= 0.1  # fewer pixels beyond the range
    weights["final_layer.linear.bias"] += 0.5
    for name in ("encoder_patch_pe", "decoder_latent_pe", "decoder_patch_query_embed"):
        weights[name] = weights[name][None]
    weights["decoder_patch_query_token_type_embed"].resize_(1, 1, 64)
    return weights


@pytest.fixture
def weights(made: Weights) -> Weights:
    return dict(made)


@pytest.fixture
def video(noise: Callable[..., Tensor]) -> Tensor:
    return noise((1, 3, 16, 128, 128), -1)


@pytest.fixture
def convert(import_content: Callable[..., Any]) -> Convert:
    """Writes content to a file, and imports the file."""

    def run(content: Any, suffix: str = ".safetensors") -> Larp:
        tokenizer = import_content(published.import_file, content, suffix)
        assert isinstance(tokenizer, Larp)
        return tokenizer

    return run


def test_published_names_and_numbers() -> None:
    with torch.device("meta"):
        tokenizer = Larp()
    own, names = tokenizer.state_dict(), published.published_names(tokenizer)
    assert len(set(names.values())) == len(own) == 280
    assert sum(value.numel() for value in tokenizer.parameters()) == 172_179_984
    shapes = {names[name]: tuple(value.shape) for name, value in own.items()}
    assert shapes["x_embedder.proj.weight"] == (768, 3, 4, 8, 8)
    assert shapes["encoder_latent_query_embed"] == (1024, 768)
    assert shapes["encoder.blocks.11.attn.qkv.weight"] == (2304, 768)
    assert shapes["decoder.blocks.0.mlp.fc1.bias"] == (3072,)
    assert shapes["bottleneck.in_linear.weight"] == (16, 768)
    assert shapes["bottleneck.regularizer.embedding.weight"] == (8192, 16)
    assert shapes["final_layer.linear.weight"] == (768, 768)
    assert tokenizer.spec.grid(32, 128, 128) == TokenGrid(2, 32, 32)


def test_results_of_the_released_code(weights: Weights, video: Tensor, convert: Convert) -> None:
    tokenizer = convert({**weights, "prior_model.wte.weight": torch.zeros(2)})
    tokens = tokenizer.encode(video)
    assert tokens.shape == (1, 1, 4, 4)
    assert tokens.flatten().tolist() == IDS
    decoded = tokenizer.decode(tokens)[0, :, ::7, ::37, ::41].flatten()
    expected = torch.tensor([float(number) for number in PIXELS.split()])
    torch.testing.assert_close(decoded, expected, rtol=0, atol=2e-5)


def test_a_checkpoint_of_the_training(weights: Weights, convert: Convert, video: Tensor) -> None:
    model = {"sd": weights, "args": {"input_size": 128}, "name": "larp_tokenizer"}
    tokenizer = convert({"model": model, "epoch": 3}, ".pth")
    assert tokenizer.encode(video).flatten().tolist() == IDS


def test_windows_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    tokenizer = Larp(**SMALL | {"size": (4, 16, 24), "patch": (2, 8, 8)}).eval()
    assert not tokenizer.spec.causal
    video = torch.rand(2, 3, 8, 16, 24) * 2 - 1
    whole = tokenizer.latents(video)
    parts = [tokenizer.latents(window) for window in video.chunk(2, dim=2)]
    torch.testing.assert_close(whole, torch.cat(parts, dim=1))
    tokens = tokenizer.encode(video)
    parts = [tokenizer.decode(window) for window in tokens.chunk(2, dim=1)]
    torch.testing.assert_close(tokenizer.decode(tokens), torch.cat(parts, dim=2))


def test_ids_are_of_the_codes_with_the_greatest_cosine() -> None:
    tokenizer = Larp(**SMALL)
    tokenizer.embedding.weight.data *= torch.rand(40, 1) + 0.1
    ids = torch.arange(40).reshape(1, 1, 5, 8)
    codes = tokenizer.indices_to_codes(ids)
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(1, 1, 5, 8))
    tokenizer.latents = lambda _: codes  # type: ignore[method-assign]
    assert torch.equal(tokenizer.encode(torch.zeros(1, 3, 16, 128, 128)), ids)


def test_clips_and_options_that_do_not_fit() -> None:
    with torch.device("meta"):
        tokenizer = Larp(**SMALL)
    with pytest.raises(UserError, match="not a multiple of the temporal stride 16"):
        tokenizer.encode(torch.zeros(1, 3, 17, 128, 128, device="meta"))
    with pytest.raises(
        UserError, match="frames of 128x128 pixels only, which are 4x4 tokens, not 2x4"
    ):
        tokenizer.encode(torch.zeros(1, 3, 16, 64, 128, device="meta"))
    with pytest.raises(UserError, match="takes frames of 128x128 pixels only"):
        tokenizer.decode(torch.zeros(1, 1, 4, 5, dtype=torch.long, device="meta"))
    for options, reason in (
        ({"num_heads": 5}, "dim=64 must be a multiple of num_heads=5"),
        ({"patch": (4, 8, 7)}, "do not divide windows"),
        ({"rows": 5}, "A token grid of 5x4 does not divide windows"),
    ):
        with pytest.raises(UserError, match=reason):
            Larp(**{**SMALL, **options})


# --- files


def test_the_command(weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({**weights, "prior_model.wte.weight": torch.zeros(2)}, tmp_path / "in.safetensors")
    command = ["import", "larp", f"{tmp_path}/in.safetensors", f"{tmp_path}/out.safetensors"]
    assert main(command) == 0
    report = capsys.readouterr().out
    assert f"{len(weights)} tensors" in report
    assert "prior_model: not needed" in report


def test_what_does_not_fit_is_listed(weights: Weights, convert: Convert, tmp_path: Path) -> None:
    del weights["encoder.blocks.0.norm1.bias"]
    weights["encoder.blocks.0.attn.qkv.bias"] = torch.zeros(192)
    weights["encoder_patch_pe"] = torch.zeros(1, 512, 64)
    with pytest.raises(UserError, match="3 of its tensors do not fit") as raised:
        convert(weights)
    for part in (
        "in.safetensors: not the tokenizer of LARP",
        "missing encoder.blocks.0.norm1.bias",
        "unexpected encoder.blocks.0.attn.qkv.bias",
        "encoder_patch_pe is (1, 512, 64), not (1024, 64)",
    ):
        assert part in str(raised.value)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "holds a list"),
        ({"model": [1]}, "'model' is a list, not a dict"),
        ({"model": {"args": {}}}, "has no 'sd', but 'args'"),
        ({"model": {"sd": {}}}, "it has no matrix encoder_latent_query_embed"),
        (
            {
                "model": {
                    "sd": {
                        published.QUERIES: torch.zeros(7, 64),
                        published.CODEBOOK: torch.zeros(9, 2),
                    }
                }
            },
            "its 7 tokens cannot be laid out in a square",
        ),
        (
            {
                "model": {
                    "sd": {
                        published.QUERIES: torch.zeros(1).expand(4, 10**6),
                        published.CODEBOOK: torch.zeros(9, 2),
                    }
                }
            },
            "dim must be 1 to 16384, not 1000000",
        ),
    ],
)
def test_files_that_are_something_else(content: Any, reason: str, convert: Convert) -> None:
    with pytest.raises(UserError, match=reason):
        convert(content, ".pth")


def test_code_in_a_file_is_not_run(weights: Weights, convert: Convert, hostile: Any) -> None:
    for name in (published.QUERIES, published.CODEBOOK):
        with pytest.raises(UserError, match=f"has no matrix {name}"):
            convert({"model": {"sd": {**weights, name: hostile}}}, ".pth")
    with pytest.raises(UserError, match="encoder_patch_pe is mkdtemp, not floats"):
        convert({"model": {"sd": {**weights, "encoder_patch_pe": hostile}}}, ".pth")
    others = {"optimizers": hostile, 3: {}}
    convert({"model": {"sd": {**weights, 7: hostile}}, **others}, ".pth")  # not needed
    assert not hostile.has_run
