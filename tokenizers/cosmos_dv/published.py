"""Converts the published discrete video tokenizers of NVIDIA Cosmos to arvid's format: `arvid import cosmos-dv`.

`model.pt` of https://huggingface.co/nvidia/Cosmos-Tokenize1-DV8x16x16-720p and of Cosmos-Tokenize1-DV4x8x8-360p is a
training checkpoint. Its entry `model` has the weights under `network.` and their EMA under `ema.network-`. arvid reads
the weights without EMA, because the published `encoder.jit` has these. They are bfloat16. Sizes follow from the shapes
and names of the tensors. Files of the weights alone (`torch.save` or safetensors) can be read too.

The `.jit` files of the same folders are programs (TorchScript), which arvid does not run. The older tokenizers
Cosmos-0.1 and Cosmos-1.0 have no other files.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.importing import Imported, read_training_checkpoint, read_weights
from arvid.nn.causal_conv import FrameNorm
from arvid.tokenizers.cosmos_dv import MAX_BLOCKS
from arvid.tokenizers.cosmos_dv.network import CausalConv3d
from arvid.training.export import import_tokenizer

WEIGHTS, NETWORK = "model", "network."
"""Entry of a training checkpoint with the weights, and the prefix of the weights without EMA."""
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
"""Prefixes of the tokenizer's weights. Other weights belong to its training."""
WAVELETS = ("encoder.patcher3d.", "decoder.unpatcher3d.")
"""Prefixes of the wavelets, which are constants. Some files contain them; they are not read."""


def import_file(file: Path, out: Path) -> Imported:
    """Write the published tokenizer in `file` as a tokenizer file of arvid.

    Raises UserError for a file that has no tokenizer of Cosmos, and with a list of tensors that do not fit.
    """
    if file.suffix == ".jit":
        raise UserError(
            f"{file}: a TorchScript archive is a program, which arvid does not run. "
            f"Give model.pt, which is in the same folder of Cosmos-Tokenize1."
        )
    content = (
        read_weights(file) if file.suffix == ".safetensors" else read_training_checkpoint(file)
    )
    weights = content.get(WEIGHTS, content)
    if not isinstance(weights, dict):
        raise UserError(f"{file}: {WEIGHTS!r} is a {type(weights).__name__}, not weights.")
    weights = {name: value for name, value in weights.items() if isinstance(name, str)}
    tensors = _network(weights)
    moves = import_tokenizer(
        file,
        out,
        tensors,
        partial(read_options, tensors),
        published_names,
        name="cosmos_dv",
        model="a discrete video tokenizer of Cosmos",
    )
    return Imported(moves, unused=_unused(content, weights))


def read_options(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of the tokenizer with these tensors. Raises UserError if its first layers are missing.

    No shape tells the levels of the quantisation; they are the same in all published models.
    """
    channels = [_size(tensors, "encoder.conv_in.0.conv3d.weight", 0)]
    while f"encoder.down.{len(channels) - 1}.block.0.conv1.0.conv3d.weight" in tensors:
        name = f"encoder.down.{len(channels) - 1}.block.0.conv1.0.conv3d.weight"
        channels.append(_size(tensors, name, 0))
    patch = round((_size(tensors, "encoder.conv_in.0.conv3d.weight", 1) / 3) ** (1 / 3))
    frames, pixels = (
        patch * 2 ** _count(tensors, "encoder.down.", f".downsample.{conv}.conv3d.weight")
        for conv in ("conv2", "conv1")
    )
    return {
        "channels": channels,
        "num_blocks": _count(tensors, "encoder.down.0.block.", ".conv1.0.conv3d.weight"),
        "latent_channels": _size(tensors, "quant_conv.conv3d.weight", 1),
        "patch": patch,
        "strides": [frames, pixels, pixels],
    }


def _size(tensors: Mapping[str, Any], name: str, axis: int) -> int:
    value = tensors.get(name)
    if not isinstance(value, Tensor) or value.is_nested or value.ndim != 5:
        raise UserError(f"it has no weights {name} of a convolution over frames, rows and columns.")
    return value.shape[axis]


def _count(tensors: Mapping[str, Any], start: str, end: str) -> int:
    """Number of consecutive i, from 0 on, for which there is a name start + i + end; at most one more than allowed."""
    count = 0
    while count <= MAX_BLOCKS and f"{start}{count}{end}" in tensors:
        count += 1
    return count


def published_names(tokenizer: nn.Module) -> dict[str, str]:
    """The published name of each tensor, by arvid's name."""
    found = {}
    for module_name, module in tokenizer.named_modules():
        inner = {CausalConv3d: "conv3d.", FrameNorm: "norm."}.get(type(module), "")
        for name, _ in module.named_parameters(recurse=False):
            found[f"{module_name}.{name}"] = f"{module_name}.{inner}{name}"
    return found


def _network(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer's tensors by their names in the published class."""
    trained = any(name.startswith(NETWORK) for name in weights)
    names = {
        name.removeprefix(NETWORK): name
        for name in weights
        if not trained or name.startswith(NETWORK)
    }
    return {
        name: weights[full]
        for name, full in names.items()
        if name.startswith(PARTS) and not name.startswith(WAVELETS)
    }


def _unused(content: Mapping[str, Any], weights: Mapping[str, Any]) -> list[str]:
    """Names of the other content of the file: the EMA, training state, and constants."""
    others = {name.partition(".")[0] for name in weights if not name.startswith((*PARTS, NETWORK))}
    if WEIGHTS in content:
        others |= {str(name) for name in content if name != WEIGHTS}
    return sorted(others)
