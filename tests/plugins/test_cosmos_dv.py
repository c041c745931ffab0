"""cosmos_dv: names and numbers of the published networks, their results on given weights, files, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arvid.cli import main
from arvid.contracts import TokenGrid, UserError
from arvid.tokenizers.cosmos_dv import CosmosDV, published
from arvid.tokenizers.cosmos_dv.wavelet import analyse, synthesise

SMALL: dict[str, Any] = {"channels": (8, 8, 16, 16), "num_blocks": 1}
SIZES: dict[str, dict[str, Any]] = {
    "8x16x16": {**SMALL, "latent_channels": 6},
    "4x8x8": {**SMALL, "latent_channels": 10, "patch": 2, "strides": (4, 8, 8)},
}
RELEASED = {
    "8x16x16": (
        (1, 3, 9, 32, 48),
        "10174 7412 19245 12796 7029 22454 7613 7404 19309 10236 19765 22454",
        """-0.00801 -0.27552 0.09454 0.05792 0.29396 0.30941 0.24714 0.45265 -0.09048 -0.22626 0.43742 0.14294
        -0.00854 -0.26417 0.09463 0.0665 0.28659 0.29817 0.26463 0.46072 -0.08584 -0.18839 0.45828 0.14119
        -0.00583 -0.26228 0.09887 0.07397 0.29176 0.27942 0.2603 0.46157 -0.08731 -0.19571 0.46081 0.13553
        -0.36929 -0.89549 0.22765 -0.70331 0.24591 0.48041 0.69539 -0.32061 -0.47017 -0.31618 0.43784 -0.42528
        -0.38831 -0.86862 0.23501 -0.7012 0.24818 0.47213 0.68391 -0.31341 -0.41003 -0.29893 0.44243 -0.44039
        -0.37278 -0.88769 0.22332 -0.68829 0.2355 0.47024 0.65696 -0.33157 -0.41711 -0.25353 0.42435 -0.43685
        -0.44583 -0.21026 -0.1085 -0.77347 -0.21272 -0.45252 0.56455 0.45629 -0.4115 0.24535 -0.53452 0.17917
        -0.44492 -0.21232 -0.12588 -0.76853 -0.20492 -0.45221 0.55951 0.46721 -0.40549 0.2719 -0.5265 0.18966
        -0.44295 -0.22381 -0.10366 -0.76049 -0.21496 -0.45648 0.56413 0.4782 -0.37036 0.2801 -0.53594 0.18658""",
    ),
    "4x8x8": (
        (1, 3, 5, 16, 24),
        "26981 40426 26909 22308 29522 14178 26981 42986 14046 24869 27018 3882",
        """-0.01599 0.23413 0.19317 0.15835 -0.01498 0.24485 0.1968 0.15515 0.04112 -0.00576 -0.03385 -0.04265
        0.03552 -0.00626 -0.04062 -0.06744 -0.08435 -0.19454 -0.05004 -0.1904 -0.08913 -0.1976 -0.06 -0.19676""",
    ),
}
"""For each size a clip's shape, its ids, and every 4th frame, 11th row and 15th column of the reconstruction, from the
released code (CausalDiscreteVideoTokenizer of nvidia-cosmos/cosmos-predict1, commit 4ed35fa) on the same weights."""

Weights = dict[str, Tensor]
Convert = Callable[..., CosmosDV]


@pytest.fixture(scope="module")
def made(formula_weights: Callable[..., Weights]) -> dict[str, Weights]:
    """The weights of small networks by their published names, for each size."""
    return {size: _made(options, formula_weights) for size, options in SIZES.items()}


def _made(options: dict[str, Any], formula_weights: Callable[..., Weights]) -> Weights:
    with torch.device("meta"):
        tokenizer = CosmosDV(**options)
    own, names = tokenizer.state_dict(), published.published_names(tokenizer)
    weights = formula_weights({names[name]: tuple(value.shape) for name, value in own.items()})
    weights["encoder.conv_in.0.conv3d.weight"] *= 4  # more ids
    weights["quant_conv.conv3d.weight"] *= 2
    for name in ("weight", "bias"):  # fewer pixels beyond the range
        weights[f"decoder.conv_out.1.conv3d.{name}"] *= 0.1
    return weights


@pytest.fixture
def weights(made: dict[str, Weights]) -> Weights:
    return dict(made["4x8x8"])


@pytest.fixture
def convert(import_content: Callable[..., Any]) -> Convert:
    """Writes content to a file, and imports the file."""

    def run(content: Any, suffix: str = ".pt") -> CosmosDV:
        tokenizer = import_content(published.import_file, content, suffix)
        assert isinstance(tokenizer, CosmosDV)
        return tokenizer

    return run


def trained(weights: dict[str, Any]) -> dict[str, Any]:
    """Content with the layout of the published files. The EMA weights are other numbers."""
    network = {f"network.{name}": value for name, value in weights.items()}
    averages = {f"ema.network-{name.replace('.', '-')}": torch.zeros(1) for name in weights}
    return {"model": {**network, **averages}, "optimizer": {"state": {}}, "iteration": 7}


def test_published_names_and_numbers() -> None:
    with torch.device("meta"):
        tokenizer = CosmosDV()
    own, names = tokenizer.state_dict(), published.published_names(tokenizer)
    assert own.keys() == names.keys()
    assert len(own) == 318
    assert sum(value.numel() for value in own.values()) == 110_898_294
    shapes = {names[name]: tuple(value.shape) for name, value in own.items()}
    assert shapes["encoder.conv_in.0.conv3d.weight"] == (128, 192, 1, 3, 3)
    assert shapes["encoder.down.0.downsample.conv2.conv3d.weight"] == (256, 256, 3, 1, 1)
    assert "encoder.down.1.downsample.conv2.conv3d.weight" not in shapes
    assert "decoder.up.2.upsample.conv1.conv3d.weight" not in shapes
    assert shapes["decoder.up.1.upsample.conv1.conv3d.weight"] == (512, 512, 3, 1, 1)
    assert shapes["decoder.mid.attn_1.1.norm.norm.weight"] == (512,)
    assert shapes["post_quant_conv.conv3d.weight"] == (16, 6, 1, 1, 1)
    video = torch.empty(1, 3, 17, 64, 96, device="meta")
    tokens = tokenizer.encode(video)
    assert tokens.shape == (1, 3, 4, 6)
    assert tokenizer.decode(tokens).shape == video.shape
    assert tokenizer.spec.size == 64_000


def test_numbers_of_the_smaller_patches() -> None:
    with torch.device("meta"):
        tokenizer = CosmosDV(latent_channels=256, patch=2, strides=(4, 8, 8))
    assert sum(value.numel() for value in tokenizer.state_dict().values()) == 112_619_766
    assert tokenizer.spec.grid(17, 64, 96) == TokenGrid(5, 8, 12)


@pytest.mark.parametrize("size", RELEASED)
def test_results_of_the_released_code(
    size: str, made: dict[str, Weights], convert: Convert, noise: Callable[..., Tensor]
) -> None:
    shape, ids, pixels = RELEASED[size]
    tokenizer = convert(trained(made[size]))
    tokens = tokenizer.encode(noise(shape, -1))
    assert tokens.flatten().tolist() == [int(number) for number in ids.split()]
    decoded = tokenizer.decode(tokens)[0, :, ::4, ::11, ::15].flatten()
    expected = torch.tensor([float(number) for number in pixels.split()])
    torch.testing.assert_close(decoded, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_of_the_weights_alone(
    suffix: str, weights: Weights, convert: Convert, noise: Callable[..., Tensor]
) -> None:
    """Such files of the older code also contain the wavelets, which are constants."""
    tokenizer = convert({**weights, "encoder.patcher3d.wavelets": torch.ones(2)}, suffix)
    shape, ids, _ = RELEASED["4x8x8"]
    tokens = tokenizer.encode(noise(shape, -1))
    assert tokens.flatten().tolist() == [int(number) for number in ids.split()]


def test_the_published_weights_are_bfloat16(weights: Weights, convert: Convert) -> None:
    tokenizer = convert(trained({name: value.bfloat16() for name, value in weights.items()}))
    name = "quant_conv.weight"
    stored = tokenizer.state_dict()[name]
    assert stored.dtype == torch.float32
    assert torch.equal(stored, weights["quant_conv.conv3d.weight"].bfloat16().float())


def test_wavelets_are_means_and_differences() -> None:
    pair = torch.tensor([3.0, 1.0])
    video = torch.cat([torch.zeros(1), pair])[None, None, :, None, None].expand(1, 1, 3, 2, 2)
    bands = analyse(video, 2)
    assert bands.shape == (1, 8, 2, 1, 1)
    assert bands[0, :, 1].flatten().tolist() == [2, 0, 0, 0, 1, 0, 0, 0]  # frames: the first digit
    columns = torch.tensor([3.0, 1.0]).expand(1, 1, 1, 2, 2)
    assert analyse(columns, 2)[0, :, 0].flatten().tolist() == [2, 1, 0, 0, 0, 0, 0, 0]
    clip = torch.rand(2, 3, 9, 8, 16)
    torch.testing.assert_close(synthesise(analyse(clip, 4), 4), clip)


def test_a_prefix_of_tokens_decodes_to_the_prefix_of_the_clip(
    weights: Weights, convert: Convert, noise: Callable[..., Tensor]
) -> None:
    tokenizer = convert(weights)
    tokens = tokenizer.encode(noise((1, 3, 9, 16, 16), 5))
    whole = tokenizer.decode(tokens)
    torch.testing.assert_close(tokenizer.decode(tokens[:, :2]), whole[:, :, :5], rtol=0, atol=1e-5)


def test_ids_are_those_of_their_codes() -> None:
    tokenizer = CosmosDV(**SMALL, levels=(4, 3), latent_channels=2)
    ids = torch.arange(12).reshape(1, 1, 3, 4)
    codes = tokenizer.indices_to_codes(ids)
    assert codes[0, 0, :, 0].tolist() == [[-1, -1], [-1, 0], [-1, 1]]
    # A number before quantisation for each code: the inverse of the bounded range, by its own formula.
    half, offset = torch.tensor([1.5, 1.0]) * 1.001, torch.tensor([0.5, 0.0])
    numbers = torch.atanh((codes * torch.tensor([2, 1]) + offset) / half) - torch.atanh(
        offset / half
    )
    tokenizer.latents = lambda _: numbers  # type: ignore[method-assign]
    assert torch.equal(tokenizer.encode(torch.zeros(1, 3, 1, 48, 64)), ids)


def test_clips_and_options_that_do_not_fit() -> None:
    with torch.device("meta"):
        tokenizer = CosmosDV(**SMALL)
    with pytest.raises(UserError, match=r"takes 1 \+ 8·n frames"):
        tokenizer.encode(torch.zeros(1, 3, 5, 16, 16, device="meta"))
    with pytest.raises(UserError, match="must be powers of two, with equal rows and columns"):
        CosmosDV(**SMALL, strides=(8, 16, 8))
    for strides in ((16, 16, 16), (8, 4, 4), (2, 8, 8), (8, 32, 32)):
        with pytest.raises(UserError, match="1 to 4 for rows and columns, 1 to 2 for frames"):
            CosmosDV(**SMALL, strides=strides)
    with pytest.raises(UserError, match="three numbers or more"):
        CosmosDV(channels=(8, 8), patch=1, strides=(1, 1, 1))


# --- files


def test_the_command(weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(trained(weights), tmp_path / "model.pt")
    command = ["import", "cosmos-dv", f"{tmp_path}/model.pt", f"{tmp_path}/out.safetensors"]
    assert main(command) == 0
    report = capsys.readouterr().out
    assert f"{len(weights)} tensors" in report
    assert "ema, iteration, optimizer: not needed" in report


def test_what_does_not_fit_is_listed(weights: Weights, convert: Convert, tmp_path: Path) -> None:
    del weights["decoder.mid.attn_1.1.q.conv3d.bias"]
    weights["encoder.down.2.downsample.conv3.conv3d.bias"] = torch.zeros(16)
    weights["encoder.norm_out.norm.weight"] = torch.zeros(64)
    with pytest.raises(UserError, match="3 of its tensors do not fit") as raised:
        convert(trained(weights))
    for part in (
        "in.pt: not a discrete video tokenizer of Cosmos",
        "missing decoder.mid.attn_1.1.q.conv3d.bias",
        "unexpected encoder.down.2.downsample.conv3.conv3d.bias",
        "encoder.norm_out.norm.weight is (64,), not (16,)",
    ):
        assert part in str(raised.value)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "holds a list"),
        ({"model": [1]}, "'model' is a list"),
        ({"model": {}}, "has no weights encoder.conv_in.0.conv3d.weight"),
        ({"encoder.conv_in.0.conv3d.weight": torch.zeros(3)}, "has no weights encoder.conv_in"),
        (
            {
                "encoder.conv_in.0.conv3d.weight": torch.zeros(1).expand(10**6, 192, 1, 3, 3),
                "quant_conv.conv3d.weight": torch.zeros(6, 16, 1, 1, 1),
            },
            "channels must be 1 to 8192, not 1000000",
        ),
        (
            {
                "encoder.conv_in.0.conv3d.weight": torch.zeros(8, 192, 1, 3, 3),
                "quant_conv.conv3d.weight": torch.zeros(6, 16, 1, 1, 1),
                "encoder.down.0.block.0.conv1.0.conv3d.weight": torch.zeros(8, 8, 1, 3, 3),
                **{f"encoder.down.{i}.downsample.conv1.conv3d.weight": 0 for i in range(20_000)},
            },
            "strides must be below",
        ),
    ],
)
def test_files_that_are_something_else(content: Any, reason: str, convert: Convert) -> None:
    with pytest.raises(UserError, match=reason):
        convert(content)


def test_code_in_a_file_is_not_run(weights: Weights, convert: Convert, hostile: Any) -> None:
    name = "decoder.norm_out.norm.weight"
    with pytest.raises(UserError, match=f"{name} is mkdtemp, not floats"):
        convert(trained({**weights, name: hostile}))
    content = trained(weights)
    content["model"][7] = hostile
    convert({**content, "scheduler": hostile, 3: {}})  # not needed
    assert not hostile.has_run


def test_a_program_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "encoder.jit"
    file.touch()
    with pytest.raises(UserError, match=r"encoder.jit: a TorchScript archive .* Give model.pt"):
        published.import_file(file, tmp_path / "out.safetensors")
