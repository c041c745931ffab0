"""open_magvit2: names and numbers of the published network, its results on given weights, files, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arvid.cli import main
from arvid.contracts import TokenGrid, UserError
from arvid.tokenizers.open_magvit2 import OpenMagvit2, published

OPTIONS: dict[str, Any] = {"channels": (32, 64, 64, 128), "bits": 6, "num_blocks": 1}
IDS = [0, 33, 33, 0, 0, 33, 2, 12, 15, 2, 38, 6]
PIXELS = """
0.33584 0.09231 0.38828 0.22367 0.1513 0.37799 0.34525 0.41571 0.3755 0.40047 0.26031 0.32378
-0.05507 -0.03506 -0.12021 -0.12036 -0.332 -0.39367 0.07052 0.05643 -0.6149 -0.57932 -0.49442 -0.12385
-0.01843 -0.01477 0.03446 -0.09567 0.28091 0.02178 0.10987 -0.21319 0.29873 0.22031 0.29612 -0.26955
"""
"""Ids and every 2nd frame, 15th row and 23rd column of the reconstruction, from the released code (VQModel of
TencentARC/SEED-Voken, commit b9a17ea) on the same weights and clip."""

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def made(formula_weights: Callable[..., Weights]) -> Weights:
    """A small network's weights by their published names."""
    with torch.device("meta"):
        tokenizer = OpenMagvit2(**OPTIONS)
    own, names = tokenizer.state_dict(), published.published_names(tokenizer)
    return formula_weights({names[name]: tuple(value.shape) for name, value in own.items()})


@pytest.fixture
def weights(made: Weights) -> Weights:
    return dict(made)


@pytest.fixture
def video(noise: Callable[..., Tensor]) -> Tensor:
    return noise((1, 3, 5, 16, 24), -1)


@pytest.fixture
def convert(
    import_content: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., OpenMagvit2]:
    """Writes what is given to a file, and imports it as a small published tokenizer."""
    monkeypatch.setattr(published, "OPTIONS", OPTIONS)

    def run(content: Any, suffix: str = ".ckpt") -> OpenMagvit2:
        tokenizer = import_content(published.import_file, content, suffix)
        assert isinstance(tokenizer, OpenMagvit2)
        return tokenizer

    return run


def averaged(weights: Weights) -> Weights:
    """Names of the EMA in the published file."""
    return {f"model_ema.{name.replace('.', '')}": value for name, value in weights.items()}


def test_published_names_and_numbers() -> None:
    with torch.device("meta"):
        tokenizer = OpenMagvit2()
    own, names = tokenizer.state_dict(), published.published_names(tokenizer)
    assert own.keys() == names.keys()
    assert len(own) == 283
    assert sum(value.numel() for value in own.values()) == 370_547_349
    shapes = {names[name]: tuple(value.shape) for name, value in own.items()}
    assert shapes["encoder.conv_in.conv_1.weight"] == (128, 3, 3, 3, 3)
    assert shapes["encoder.down.3.block.0.nin_shortcut.conv_1.weight"] == (512, 256, 1, 1, 1)
    assert shapes["decoder.up.1.upsample.conv1.conv_1.bias"] == (4 * 256,)
    assert shapes["decoder.adaptive.2.gamma.weight"] == (512, 18)
    video = torch.empty(1, 3, 17, 128, 128, device="meta")
    tokens = tokenizer.encode(video)
    assert tokens.shape == (1, 5, 16, 16)
    assert tokenizer.decode(tokens).shape == video.shape
    assert tokenizer.spec.size == 262_144


def test_results_of_the_released_code(
    weights: Weights, video: Tensor, convert: Callable[..., OpenMagvit2]
) -> None:
    others = {"loss.discriminator.main.0.weight": torch.zeros(3), "model_ema.decay": torch.zeros(1)}
    content = {"epoch": 7, "state_dict": {**weights, **others}}
    content["state_dict"] |= averaged(weights)
    for name in weights:  # the released evaluation has the EMA, not the weights of the last step
        content["state_dict"][name] = torch.zeros_like(weights[name])
    tokenizer = convert(content)
    tokens = tokenizer.encode(video)
    assert tokens.flatten().tolist() == IDS
    expected = torch.tensor([float(number) for number in PIXELS.split()])
    pixels = tokenizer.decode(tokens)[0, :, ::2, ::15, ::23]
    torch.testing.assert_close(pixels.flatten(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("layout", ["training without EMA", "weights", "safetensors"])
def test_other_layouts_of_the_same_weights(
    layout: str, weights: Weights, video: Tensor, convert: Callable[..., OpenMagvit2]
) -> None:
    content = {"state_dict": weights, "epoch": 1} if "training" in layout else weights
    tokenizer = convert(content, ".safetensors" if layout == "safetensors" else ".ckpt")
    assert tokenizer.encode(video).flatten().tolist() == IDS


def test_ids_are_bits_and_the_first_is_the_least() -> None:
    tokenizer = OpenMagvit2(**{**OPTIONS, "channels": (32, 32, 32, 32)})
    ids = torch.arange(64).reshape(1, 1, 8, 8)
    codes = tokenizer.indices_to_codes(ids)
    assert codes[0, 0, 0, 1].tolist() == [1, -1, -1, -1, -1, -1]
    tokenizer.encoder.forward = lambda _: codes.movedim(-1, 1)  # type: ignore[method-assign]
    assert torch.equal(tokenizer.encode(torch.zeros(1, 3, 1, 64, 64)), ids)
    tokenizer.encoder.forward = lambda _: torch.zeros(1, 6, 1, 8, 8)  # type: ignore[method-assign]
    assert not tokenizer.encode(torch.zeros(1, 3, 1, 64, 64)).any()  # a bit is above 0, not at it


def test_later_frames_reach_earlier_tokens(
    weights: Weights, video: Tensor, convert: Callable[..., OpenMagvit2]
) -> None:
    """Through norms over the whole clip: without them the network is causal."""
    tokenizer = convert(weights)
    assert tokenizer.spec.causal
    assert not tokenizer.spec.exact_prefix
    changed = torch.cat([video[:, :, :1], -video[:, :, 1:]], dim=2)
    before, after = tokenizer.latents(video)[:, 0], tokenizer.latents(changed)[:, 0]
    assert not torch.allclose(before, after, atol=1e-3)
    for module in tokenizer.encoder.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    before, after = tokenizer.latents(video)[:, 0], tokenizer.latents(changed)[:, 0]
    torch.testing.assert_close(before, after)


def test_clips_and_options_that_do_not_fit() -> None:
    with torch.device("meta"):
        tokenizer = OpenMagvit2(**OPTIONS)
    with pytest.raises(UserError, match=r"takes 1 \+ 4·n frames"):
        tokenizer.encode(torch.zeros(1, 3, 4, 16, 16, device="meta"))
    with pytest.raises(UserError, match="does not decode a single token"):
        tokenizer.decode(torch.zeros(1, 1, 1, 1, dtype=torch.long, device="meta"))
    tokenizer.check_grid(TokenGrid(1, 1, 2))
    with pytest.raises(UserError, match="four multiples of num_groups=32"):
        OpenMagvit2(channels=(16, 32, 32, 32))


# --- files


def test_the_command(
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(published, "OPTIONS", OPTIONS)
    others = {"loss.logvar": torch.zeros(1)}
    torch.save({"state_dict": {**weights, **others}, "epoch": 3}, tmp_path / "in.ckpt")
    command = ["import", "open-magvit2", f"{tmp_path}/in.ckpt", f"{tmp_path}/out.safetensors"]
    assert main(command) == 0
    report = capsys.readouterr().out
    numbers = sum(math.prod(value.shape) for value in weights.values())
    assert f"{len(weights)} tensors, {numbers:,} numbers" in report
    assert "epoch, loss: not needed" in report


def test_what_does_not_fit_is_listed(
    weights: Weights, convert: Callable[..., OpenMagvit2], tmp_path: Path
) -> None:
    del weights["decoder.adaptive.0.beta.bias"]
    weights["encoder.conv_in.conv_1.bias"] = torch.zeros(32)
    weights["encoder.norm_out.weight"] = torch.zeros(64)
    with pytest.raises(UserError, match="3 of its tensors do not fit") as raised:
        convert({"state_dict": weights})
    for part in (
        "in.ckpt: not the published tokenizer",
        "missing decoder.adaptive.0.beta.bias",
        "unexpected encoder.conv_in.conv_1.bias",
        "encoder.norm_out.weight is (64,), not (128,)",
    ):
        assert part in str(raised.value)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "holds a list"),
        ({"state_dict": [1]}, "'state_dict' is a list"),
        ({"model_ema.decay": torch.zeros(1)}, "of its tensors do not fit"),
    ],
)
def test_files_that_are_something_else(
    content: Any, reason: str, convert: Callable[..., OpenMagvit2]
) -> None:
    with pytest.raises(UserError, match=reason):
        convert(content)


def test_code_in_a_file_is_not_run(
    weights: Weights, convert: Callable[..., OpenMagvit2], hostile: Any
) -> None:
    name = "encoder.conv_in.conv_1.weight"
    with pytest.raises(UserError, match=f"{name} is mkdtemp, not floats"):
        convert({"state_dict": {**weights, name: hostile}})
    convert({"state_dict": weights, "callbacks": hostile})  # not needed
    assert not hostile.has_run


def test_a_file_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    for name, reason in (("in.safetensors", "not a safetensors file"), ("in.ckpt", "safely")):
        (tmp_path / name).write_bytes(b"not this")
        with pytest.raises(UserError, match=reason):
            published.import_file(tmp_path / name, tmp_path / "out.safetensors")
