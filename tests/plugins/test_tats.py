"""tats: names and numbers of the published network, its results on given weights, files, refusals."""

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
from arvid.tokenizers.tats import Tats, published
from arvid.tokenizers.tats.network import SameConv3d, SameConvTranspose3d, level_strides
from arvid.training.export import load_tokenizer

SMALL: dict[str, Any] = {"base": 16, "strides": (2, 4, 4), "num_codes": 40, "channels": 6}
ARGUMENTS: dict[str, Any] = {
    "n_hiddens": 16,
    "downsample": [2, 4, 4],
    "n_codes": 40,
    "embedding_dim": 6,
    "norm_type": "batch",
    "image_channels": 3,
    "resolution": 128,
    "data_path": "somewhere",
}
"""The training's, but for its sizes."""
RELEASED = {
    "batch": (
        "10 24 10 0 10 37 20 31 10 10 2 1 10 24 10 17 10 0 10 10 10 10 2 8",
        """0.97987 1.0 0.87421 0.84889 0.97885 1.0 0.84809 0.84104 0.50043 0.66528 0.45287 0.56578
        0.51189 0.63514 0.47335 0.59085 0.4029 0.36694 0.49629 0.37403 0.40585 0.34005 0.51112 0.39297""",
    ),
    "group": (
        "18 12 5 5 30 39 18 5 30 16 12 7 18 12 6 30 30 18 18 5 19 19 12 34",
        """0.36719 0.47927 0.33818 0.37904 0.30555 0.55207 0.18528 0.78888 -0.58566 0.07658 -0.00752 -0.41148
        -0.58682 -0.06892 -0.32132 -0.52288 0.01047 -0.25396 -0.22607 0.08376 -0.0095 -0.36245 -0.55958 -0.19366""",
    ),
}
"""For each norm the ids, and every 3rd frame, 11th row and 15th column of the reconstruction, from the released code
(VQGAN of songweige/TATS, commit 03bbce1) on the same weights and clip."""

Weights = dict[str, Tensor]
Convert = Callable[..., Tats]


@pytest.fixture
def weights(formula_weights: Callable[..., Weights]) -> Callable[[str], Weights]:
    """A small network's weights by their published names, for a kind of norm."""

    def make(norm: str) -> Weights:
        with torch.device("meta"):
            tokenizer = Tats(**SMALL, norm=norm)  # type: ignore[arg-type]
        own, names = tokenizer.state_dict(), published.published_names(tokenizer)
        floats = {names[k]: tuple(v.shape) for k, v in own.items() if v.is_floating_point()}
        made = formula_weights(floats)
        made["encoder.conv_first.conv.weight"] *= 8  # more ids
        made["decoder.conv_last.conv.weight"] *= 0.15  # fewer pixels beyond the range
        counters = {names[k]: torch.zeros((), dtype=torch.long) for k in own if "num_batches" in k}
        return made | counters

    return make


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    """Imports a file with the layout of the published files."""

    def run(weights: Weights, others: dict[str, Any] | None = None, **arguments: Any) -> Tats:
        training = {
            "codebook.N": torch.zeros(40),
            "video_discriminator.model0.0.bias": torch.ones(2),
        }
        content = {
            "state_dict": {**weights, **training},
            "hyper_parameters": {"args": argparse.Namespace(**{**ARGUMENTS, **arguments})},
            "callbacks": {
                argparse.ArgumentParser: {"best": 1.0}
            },  # a class as a key, as Lightning 1.4 wrote
        }
        torch.save({**content, **(others or {})}, tmp_path / "in.ckpt")
        published.import_file(tmp_path / "in.ckpt", tmp_path / "out.safetensors")
        tokenizer = load_tokenizer(tmp_path / "out.safetensors")
        assert isinstance(tokenizer, Tats)
        return tokenizer

    return run


def test_published_names_and_numbers() -> None:
    with torch.device("meta"):
        tokenizer = Tats()
    own, names = tokenizer.state_dict(), published.published_names(tokenizer)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    learned = [value for name, value in own.items() if not name.endswith(statistics)]
    assert len(own) == 157
    assert sum(value.numel() for value in learned) == 27_846_531
    shapes = {names[name]: tuple(value.shape) for name, value in own.items()}
    assert shapes["encoder.conv_first.conv.weight"] == (32, 3, 3, 3, 3)
    assert shapes["encoder.conv_blocks.2.down.conv.weight"] == (256, 128, 4, 4, 4)
    assert shapes["decoder.conv_blocks.0.up.convt.weight"] == (256, 256, 4, 4, 4)
    assert shapes["decoder.conv_blocks.2.res2.norm1.running_var"] == (64,)
    assert shapes["pre_vq_conv.conv.weight"] == (256, 256, 1, 1, 1)
    assert shapes["codebook.embeddings"] == (16_384, 256)
    video = torch.empty(1, 3, 16, 128, 128, device="meta")
    assert tokenizer.spec.grid(16, 128, 128) == TokenGrid(4, 16, 16)
    assert tokenizer.decode(tokenizer.encode(video)).shape == video.shape


@pytest.mark.parametrize("norm", RELEASED)
def test_results_of_the_released_code(
    norm: str, weights: Callable[[str], Weights], convert: Convert, noise: Callable[..., Tensor]
) -> None:
    tokenizer = convert(weights(norm), norm_type=norm)
    ids, pixels = RELEASED[norm]
    video = noise((1, 3, 4, 12, 16), -1)
    tokens = tokenizer.encode(video)
    assert tokens.shape == (1, 2, 3, 4)
    assert tokens.flatten().tolist() == [int(number) for number in ids.split()]
    decoded = tokenizer.decode(tokens)[0, :, ::3, ::11, ::15].flatten()
    expected = torch.tensor([float(number) for number in pixels.split()])
    torch.testing.assert_close(decoded, expected, rtol=0, atol=2e-5)


def test_each_id_is_that_of_its_code() -> None:
    tokenizer = Tats(**SMALL)
    ids = torch.arange(40).reshape(1, 2, 4, 5)
    codes = tokenizer.indices_to_codes(ids)
    assert codes.shape == (1, 2, 4, 5, 6)
    tokenizer.latents = lambda _: codes + 0.01  # type: ignore[method-assign]
    assert torch.equal(tokenizer.encode(torch.zeros(1, 3, 4, 16, 20)), ids)


def test_levels_shrink_time_first() -> None:
    assert level_strides((4, 8, 8)) == [(2, 2, 2), (2, 2, 2), (1, 2, 2)]
    assert level_strides((1, 4, 2)) == [(1, 2, 2), (1, 2, 1)]


def test_convolutions_pad_to_exact_multiples() -> None:
    """With an even kernel and stride 1 three values are added, two of them in front."""
    x = torch.arange(1.0, 5.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 2, 2)
    conv = SameConv3d(1, 1, 4, stride=(1, 2, 2)).requires_grad_(False)
    conv.weight.zero_()
    conv.weight[0, 0, :, 0, 0] = torch.tensor([1000.0, 100.0, 10.0, 1.0])
    conv.bias.zero_()
    assert conv(x)[0, 0, :, 0, 0].tolist() == [1112.0, 1123.0, 1234.0, 2344.0]
    grown = SameConvTranspose3d(1, 1, 4, stride=(1, 2, 2))(x)
    assert grown.shape == (1, 1, 4, 4, 4)


def test_clips_and_options_that_do_not_fit() -> None:
    with torch.device("meta"):
        tokenizer = Tats(**SMALL)
    assert not tokenizer.spec.causal
    with pytest.raises(UserError, match="not a multiple of the temporal stride 2"):
        tokenizer.encode(torch.zeros(1, 3, 5, 16, 16, device="meta"))
    for strides in ((4, 8, 6), (1, 1, 1)):
        with pytest.raises(UserError, match="must be powers of two"):
            Tats(**{**SMALL, "strides": strides})
    with pytest.raises(UserError, match="base must be a multiple of 16"):
        Tats(**{**SMALL, "base": 8}, norm="group")


# --- files


def test_the_command(
    weights: Callable[[str], Weights],
    convert: Convert,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    convert(weights("batch"))
    assert main(["import", "tats", f"{tmp_path}/in.ckpt", f"{tmp_path}/again.safetensors"]) == 0
    assert "callbacks, codebook, video_discriminator: not needed" in capsys.readouterr().out
    written = (tmp_path / name for name in ("out.safetensors", "again.safetensors"))
    assert len({file.read_bytes() for file in written}) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"n_codes": 41}, r"codebook.embeddings is \(40, 6\), not \(41, 6\)"),
        ({"norm_type": "group"}, "unexpected decoder.conv_blocks.0.res1.norm1.running_mean"),
        ({"norm_type": "layer"}, "norm"),
        ({"downsample": [2, 4]}, "strides"),
        ({"downsample": [2, 4, 128]}, "strides must be 1 to 64, not 128"),
        ({"n_hiddens": 10**15}, "base must be 1 to 4096"),
        ({"n_hiddens": "many"}, "base"),
        ({"image_channels": 1}, "image_channels is 1, not 3"),
        ({"padding_type": "circular"}, "padding_type is 'circular', not 'replicate'"),
    ],
)
def test_arguments_of_something_else(
    arguments: dict[str, Any],
    reason: str,
    weights: Callable[[str], Weights],
    convert: Convert,
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=f"in.ckpt: not a VQGAN of TATS: .*{reason}"):
        convert(weights("batch"), **arguments)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"hyper_parameters": None}, "'hyper_parameters' is a NoneType, not a dict"),
        ({"state_dict": [1]}, "'state_dict' is a list, not a dict"),
        ({"hyper_parameters": {}}, "lack n_hiddens, downsample"),
        ({"state_dict": {}}, "missing codebook.embeddings"),
    ],
)
def test_files_without_something(
    others: dict[str, Any], reason: str, weights: Callable[[str], Weights], convert: Convert
) -> None:
    with pytest.raises(UserError, match=reason):
        convert(weights("batch"), others)


def test_code_in_a_file_is_not_run(
    weights: Callable[[str], Weights], convert: Convert, hostile: Any
) -> None:
    with pytest.raises(UserError, match="embeddings is mkdtemp, not floats"):
        convert({**weights("batch"), "codebook.embeddings": hostile})
    with pytest.raises(UserError, match="base"):
        convert(weights("batch"), n_hiddens=hostile)
    convert(weights("batch"), {"optimizer_states": hostile})  # not needed
    assert not hostile.has_run
