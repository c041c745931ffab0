"""Converts the published video tokenizer of Open-MAGVIT2 to arvid's format: `arvid import open-magvit2`.

`video_128_262144.ckpt` (https://huggingface.co/TencentARC/Open-MAGVIT2-Tokenizer-262144-Video) is a checkpoint of
Lightning. Its `state_dict` has the weights of encoder and decoder, the weights of the discriminator under `loss.`, and
the EMA of all of them under `model_ema.`, where names have no dots. arvid uses the EMA weights, as the released
evaluation does. Files without EMA and files of weights alone (`torch.save` or safetensors) can be read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.files import sha256_file
from arvid.importing import Imported, Move, match, read_training_checkpoint, read_weights
from arvid.tokenizers.open_magvit2 import OpenMagvit2
from arvid.tokenizers.open_magvit2.network import CausalConv3d
from arvid.training.export import save_tokenizer

WEIGHTS = "state_dict"
EMA = "model_ema."
PARTS = ("encoder", "decoder")
"""Parts of the tokenizer; other weights belong to its training."""
OPTIONS: dict[str, Any] = {}
"""Constructor arguments of the published tokenizer: the defaults."""


def import_file(file: Path, out: Path) -> Imported:
    """Write the published tokenizer in `file` as a tokenizer file of arvid.

    Raises UserError with a list of tensors that are missing, left over or of another shape.
    """
    content = (
        read_weights(file) if file.suffix == ".safetensors" else read_training_checkpoint(file)
    )
    weights = content.get(WEIGHTS, content)
    if not isinstance(weights, dict):
        raise UserError(f"{file}: {WEIGHTS!r} is a {type(weights).__name__}, not weights.")
    weights = {name: value for name, value in weights.items() if isinstance(name, str)}
    with torch.device("meta"):  # only names and shapes: the weights come from the file
        tokenizer = OpenMagvit2(**OPTIONS)
    try:
        state, moves = from_published(weights, tokenizer)
    except UserError as error:
        raise UserError(f"{file}: not the published tokenizer: {error}") from error
    tokenizer.load_state_dict(state, assign=True)
    record = {"imported": "open-magvit2", "file": file.name, "sha256": sha256_file(file)}
    save_tokenizer(tokenizer, out, record)
    return Imported(moves, unused=_unused(content, weights))


def from_published(
    weights: Mapping[str, Any], tokenizer: OpenMagvit2
) -> tuple[dict[str, Tensor], list[Move]]:
    """The state dict of `tokenizer`, which may be on the meta device, and the list of all moves.

    Raises UserError with a list of tensors that do not fit.
    """
    names = published_names(tokenizer)
    averaged = any(name.startswith(EMA) for name in weights)
    if averaged:
        names = {own: EMA + name.replace(".", "") for own, name in names.items()}
    prefixes = tuple(EMA + part for part in PARTS) if averaged else tuple(f"{p}." for p in PARTS)
    tensors = {name: value for name, value in weights.items() if name.startswith(prefixes)}
    return match(tensors, tokenizer.state_dict(), names)


def published_names(tokenizer: nn.Module) -> dict[str, str]:
    """The published name of each tensor, by arvid's name."""
    found = {}
    for module_name, module in tokenizer.named_modules():
        inner = "conv_1." if isinstance(module, CausalConv3d) else ""
        for name, _ in module.named_parameters(recurse=False):
            found[f"{module_name}.{name}"] = f"{module_name}.{inner}{name}"
    return found


def _unused(content: Mapping[str, Any], weights: Mapping[str, Any]) -> list[str]:
    """Names of the other content of the file: training state, and weights outside the tokenizer."""
    others = {name.partition(".")[0] for name in weights if not name.startswith((*PARTS, EMA))}
    return sorted(others | {name for name in content if WEIGHTS in content and name != WEIGHTS})
