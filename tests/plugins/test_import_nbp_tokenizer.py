"""`arvid import nbp-tokenizer`: names, numbers and refusals, against the published network written out plainly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from arvid.cli import main
from arvid.nn.causal_conv import PUBLISHED, Backbone
from arvid.tokenizers.magvit_fsq import MagvitFSQ, published
from arvid.training.export import load_tokenizer

LEVELS = (8, 8, 8, 5, 5, 5)
TINY = Backbone(base=4, multipliers=(1, 2, 2, 4), num_units=1, num_mid_units=1, num_groups=2)


@dataclass(frozen=True)
class Layer:
    """One entry of the published file's two lists of layers."""

    kind: str
    wide: tuple[int, int]
    """Channels in and out."""
    step: tuple[int, int, int] = (1, 1, 1)
    """Stride of a convolution, factors of depth-to-space."""


def encoder_layers(b: int, units: int, mid: int) -> list[Layer]:
    """The published encoder, layer by layer, with `b` channels in the first stage."""
    layers = [Layer("conv", (3, b))]
    layers += [Layer("unit", (b, b))] * units
    layers += [Layer("conv", (b, b), (1, 2, 2)), Layer("unit", (b, 2 * b))]
    layers += [Layer("unit", (2 * b, 2 * b))] * (units - 1)
    layers += [Layer("conv", (2 * b, 2 * b), (2, 2, 2))]
    layers += [Layer("unit", (2 * b, 2 * b))] * units
    layers += [Layer("conv", (2 * b, 2 * b), (2, 2, 2)), Layer("unit", (2 * b, 4 * b))]
    layers += [Layer("unit", (4 * b, 4 * b))] * (units - 1 + mid)
    return [*layers, Layer("norm", (4 * b,) * 2), Layer("swish", (4 * b,) * 2), Layer("head", (4 * b, 6))]  # fmt: skip


def decoder_layers(b: int, units: int, mid: int) -> list[Layer]:
    """The published decoder, layer by layer."""
    layers = [Layer("conv", (6, 4 * b)), *[Layer("unit", (4 * b, 4 * b))] * (mid + units)]
    layers += [Layer("conv", (4 * b, 32 * b)), Layer("spread", (32 * b, 4 * b), (2, 2, 2))]
    layers += [Layer("unit", (4 * b, 2 * b)), *[Layer("unit", (2 * b, 2 * b))] * (units - 1)]
    layers += [Layer("conv", (2 * b, 16 * b)), Layer("spread", (16 * b, 2 * b), (2, 2, 2))]
    layers += [Layer("unit", (2 * b, 2 * b))] * units
    layers += [Layer("conv", (2 * b, 8 * b)), Layer("spread", (8 * b, 2 * b), (1, 2, 2))]
    layers += [Layer("unit", (2 * b, b)), *[Layer("unit", (b, b))] * (units - 1)]
    return [*layers, Layer("norm", (b, b)), Layer("swish", (b, b)), Layer("conv", (b, 3))]


def shapes(layers: list[Layer], place: str) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of the tensors of a list of layers, in the file's order."""
    found: dict[str, tuple[int, ...]] = {}

    def conv(name: str, a: int, b: int, k: int) -> None:
        found.update({f"{name}.weight": (b, a, k, k, k), f"{name}.bias": (b,)})

    def norm_and_swish(name: str, first: int, c: int) -> None:
        found.update({f"{name}.{first}.weight": (c,), f"{name}.{first}.bias": (c,)})
        found[f"{name}.{first + 1}.beta"] = (1, c, 1, 1, 1)

    for i, layer in enumerate(layers):
        name, (a, b) = f"{place}.{i}", layer.wide
        if layer.kind == "conv":
            conv(f"{name}.conv", a, b, 3)
        elif layer.kind == "head":
            conv(name, a, b, 1)
        elif layer.kind == "norm":
            norm_and_swish(place, i, a)
        elif layer.kind == "unit":
            norm_and_swish(f"{name}.fn", 0, a)
            conv(f"{name}.fn.2.conv", a, b, 3)
            norm_and_swish(f"{name}.fn", 3, b)
            conv(f"{name}.fn.5.conv", b, b, 3)
            if a != b:
                conv(f"{name}.residual_fn.0.conv", a, b, 1)
    return found


def all_shapes(b: int, units: int, mid: int) -> dict[str, tuple[int, ...]]:
    return shapes(encoder_layers(b, units, mid), "encoder_layers") | shapes(
        decoder_layers(b, units, mid), "decoder_layers"
    )


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Seeded weights in the published layout, of a size that keeps the variance about the same."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in all_shapes(b=4, units=1, mid=1).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith((".beta", ".weight")) and math.prod(shape) == max(shape):
            made[name] = 1 + 0.2 * noise  # norms and slopes
        else:
            made[name] = noise / math.sqrt(max(1, math.prod(shape[1:])))
    return made


# --- the published network, written out from its description


def plain_conv(x: Tensor, t: dict[str, Tensor], name: str, step: tuple[int, int, int]) -> Tensor:
    weight = t[f"{name}.weight"]
    side, past = weight.shape[3] // 2, weight.shape[2] - 1
    x = torch.cat([x[:, :, :1]] * past + [x], dim=2)
    x = torch.cat([x[..., :1, :]] * side + [x] + [x[..., -1:, :]] * side, dim=3)
    x = torch.cat([x[..., :1]] * side + [x] + [x[..., -1:]] * side, dim=4)
    return F.conv3d(x, weight, t[f"{name}.bias"], stride=step)


def plain_norm(x: Tensor, t: dict[str, Tensor], name: str, groups: int) -> Tensor:
    frames = []
    for frame in x.unbind(2):
        group = frame.unflatten(1, (groups, -1))
        mean = group.mean((2, 3, 4), keepdim=True)
        variance = (group - mean).square().mean((2, 3, 4), keepdim=True)
        frames.append(((group - mean) / (variance + 1e-5).sqrt()).flatten(1, 2))
    scale, shift = (t[f"{name}.{part}"][:, None, None, None] for part in ("weight", "bias"))
    return torch.stack(frames, dim=2) * scale + shift


def plain_spread(x: Tensor, step: tuple[int, int, int]) -> Tensor:
    rt, rh, rw = step
    batch, channels, t, h, w = x.shape
    count = channels // (rt * rh * rw)
    y = x.new_empty(batch, count, t * rt, h * rh, w * rw)
    for i in range(rt):
        for j in range(rh):
            for k in range(rw):
                first = ((i * rh + j) * rw + k) * count
                y[:, :, i::rt, j::rh, k::rw] = x[:, first : first + count]
    return y[:, :, rt - 1 :]


def plain_run(x: Tensor, t: dict[str, Tensor], layers: list[Layer], place: str) -> Tensor:
    def swish(x: Tensor, name: str) -> Tensor:
        return x * torch.sigmoid(t[f"{name}.beta"] * x)

    groups = TINY.num_groups
    for i, layer in enumerate(layers):
        name = f"{place}.{i}"
        if layer.kind == "unit":
            y = swish(plain_norm(x, t, f"{name}.fn.0", groups), f"{name}.fn.1")
            y = plain_conv(y, t, f"{name}.fn.2.conv", (1, 1, 1))
            y = swish(plain_norm(y, t, f"{name}.fn.3", groups), f"{name}.fn.4")
            y = plain_conv(y, t, f"{name}.fn.5.conv", (1, 1, 1))
            same = layer.wide[0] == layer.wide[1]
            x = y + (x if same else plain_conv(x, t, f"{name}.residual_fn.0.conv", (1, 1, 1)))
        elif layer.kind == "spread":
            x = plain_spread(x, layer.step)
        elif layer.kind == "norm":
            x = plain_norm(x, t, name, groups)
        elif layer.kind == "swish":
            x = swish(x, name)
        else:
            x = plain_conv(x, t, name if layer.kind == "head" else f"{name}.conv", layer.step)
    return x


def plain_digits(latent: Tensor) -> Tensor:
    """Level of each latent channel, 0 to L - 1."""
    digits = []
    for z, count in zip(latent.unbind(1), LEVELS, strict=True):
        half = (count - 1) * (1 - 1e-3) / 2
        offset = 0.5 if count % 2 == 0 else 0.0
        bounded = torch.tanh(z + math.tan(offset / half)) * half - offset
        digits.append(bounded.round() + count // 2)
    return torch.stack(digits, dim=1)


# --- tests


def save(tensors: dict[str, Tensor], path: Path, **others: Any) -> None:
    """Write a file laid out as the published ones."""
    named = {f"module.{name}": value for name, value in tensors.items()}
    torch.save({"iter": 7, "model_state_dict": named, **others}, path)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a command that imports a file of a tiny published network."""
    monkeypatch.setattr(published, "BACKBONE", TINY)
    return ["import", "nbp-tokenizer", f"{tmp_path}/in.pt", f"{tmp_path}/out.safetensors"]


def test_names_and_shapes_of_the_full_size() -> None:
    expected = all_shapes(b=128, units=4, mid=4)
    with torch.device("meta"):
        tokenizer = MagvitFSQ(backbone=PUBLISHED)
    names = published.published_names(tokenizer)
    own = tokenizer.state_dict()
    assert list(names.values()) == list(expected)  # in the same order too
    for name, source in names.items():
        assert math.prod(own[name].shape) == math.prod(expected[source])
    assert sum(map(math.prod, expected.values())) == 370_372_105
    assert expected["encoder_layers.26.weight"] == (6, 512, 1, 1, 1)


def test_same_tokens_and_reconstruction(
    tensors: dict[str, Tensor],
    tmp_path: Path,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tensors, tmp_path / "in.pt", optimizer_state_dict={})
    assert main(arguments) == 0
    report = capsys.readouterr().out
    assert f"{len(tensors)} tensors" in report
    assert "iter, optimizer_state_dict: not needed" in report
    for name in tensors:
        assert sum(line.startswith(f"{name} ") for line in report.splitlines()) == 1
    tokenizer = load_tokenizer(tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["record"])["file"] == "in.pt"

    tokenizer.double()  # the same formulas: what is left of 1e-5 is theirs, not rounding
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    video = torch.rand(2, 3, 9, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        latent = plain_run(video, tensors, encoder_layers(4, 1, 1), "encoder_layers")
        digits = plain_digits(latent)
        basis = torch.tensor([1, 8, 64, 512, 2560, 12800])
        tokens = (digits.movedim(1, -1).long() * basis).sum(-1)
        assert tokens.unique().numel() > 5  # or the comparison would say little
        assert torch.equal(tokenizer.encode(2 * video - 1), tokens)
        half = torch.tensor([count // 2 for count in LEVELS])[:, None, None, None]
        codes = (digits - half) / half
        frames = plain_run(codes, tensors, decoder_layers(4, 1, 1), "decoder_layers")
        torch.testing.assert_close(
            tokenizer.decode(tokens), (2 * frames - 1).clamp(-1, 1), atol=1e-5, rtol=1e-5
        )


def test_same_as_feeding_the_tensors_by_position(
    tensors: dict[str, Tensor], tmp_path: Path, arguments: list[str]
) -> None:
    save(tensors, tmp_path / "in.pt")
    assert main(arguments) == 0
    imported = load_tokenizer(tmp_path / "out.safetensors")
    fed = MagvitFSQ(backbone=TINY, unit_range=True).eval()
    with torch.no_grad():
        for parameter, value in zip(fed.parameters(), tensors.values(), strict=True):
            parameter.copy_(value.view_as(parameter))
        video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
        tokens = fed.encode(video)
        assert torch.equal(imported.encode(video), tokens)
        assert torch.equal(imported.decode(tokens), fed.decode(tokens))


Change = Callable[[dict[str, Any]], None]


def _drop(tensors: dict[str, Any]) -> None:
    del tensors["encoder_layers.3.fn.1.beta"]
    del tensors["decoder_layers.0.conv.bias"]


def _add(tensors: dict[str, Any]) -> None:
    tensors["decoder_layers.99.conv.weight"] = torch.zeros(1)


def _reshape(tensors: dict[str, Any]) -> None:
    tensors["encoder_layers.0.conv.weight"] = torch.zeros(4, 3, 3, 3)


def _integers(tensors: dict[str, Any]) -> None:
    tensors["encoder_layers.0.conv.bias"] = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (_drop, ["missing encoder_layers.3.fn.1.beta", "missing decoder_layers.0.conv.bias"]),
        (_add, ["unexpected decoder_layers.99.conv.weight"]),
        (_reshape, ["encoder_layers.0.conv.weight is (4, 3, 3, 3), not (4, 3, 3, 3, 3)"]),
        (_integers, ["encoder_layers.0.conv.bias is torch.int64, not floats"]),
    ],
)
def test_what_does_not_fit_is_refused_with_a_list(
    change: Change,
    faults: list[str],
    tensors: dict[str, Tensor],
    tmp_path: Path,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(tensors)
    save(tensors, tmp_path / "in.pt")
    assert main(arguments) == 2
    message = capsys.readouterr().err
    for part in ("in.pt", f"{len(faults)} of its tensors", *faults):
        assert part in message
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"state_dict": {}}, "has no 'model_state_dict', but 'state_dict'"),
        ({"model_state_dict": [1]}, "'model_state_dict' is a list, not a dict"),
        ([1, 2], "holds a list"),
        ({"model_state_dict": {}, "model": MagvitFSQ}, "read safely"),
        (None, "there is no such file"),
    ],
)
def test_files_that_are_something_else(
    content: Any,
    reason: str,
    tmp_path: Path,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        torch.save(content, tmp_path / "in.pt")
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "in.pt" in message
    assert reason in message


def test_names_without_the_prefix_and_halves_are_fine(
    tensors: dict[str, Tensor], tmp_path: Path, arguments: list[str]
) -> None:
    torch.save({"model_state_dict": {k: v.half() for k, v in tensors.items()}}, tmp_path / "in.pt")
    assert main(arguments) == 0
    tokenizer = load_tokenizer(tmp_path / "out.safetensors")
    assert tokenizer.encode(torch.zeros(1, 3, 1, 16, 16)).shape == (1, 1, 2, 2)


def test_the_output_must_be_named_as_what_it_is(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments[:3], f"{tmp_path}/out.pt"]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err
