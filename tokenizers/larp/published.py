"""Converts the published tokenizer of LARP to arvid's format: `arvid import larp`.

`model.safetensors` of https://huggingface.co/hywang66/LARP-L-long-tokenizer has the weights of the tokenizer. Those of
its training's prior are under `prior_model.`. A checkpoint of the released training has the same tensors in the entry
`sd` of its entry `model`. Widths, depth and codebook follow from the shapes. The size of a window, that of a patch and
that of a head do not: they are the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arvid.contracts import UserError
from arvid.files import sha256_file
from arvid.importing import (
    Imported,
    match,
    published_name,
    read_training_checkpoint,
    read_weights,
    require_dicts,
)
from arvid.tokenizers.larp import Larp
from arvid.training.export import build, save_tokenizer

MODEL, WEIGHTS = "model", "sd"
PRIOR = "prior_model."
"""Weights that belong to the training."""
HEAD_DIM = 64
QUERIES = "encoder_latent_query_embed"
CODEBOOK = "bottleneck.regularizer.embedding.weight"
BLOCK = "encoder.blocks.{}.attn.qkv.weight"
NAMES = {
    "encoder.patches.": "x_embedder.proj.",
    "encoder.positions": "encoder_patch_pe",
    "encoder.queries": QUERIES,
    "encoder.transformer.": "encoder.",
    "to_code.": "bottleneck.in_linear.",
    "embedding.": "bottleneck.regularizer.embedding.",
    "from_code.": "bottleneck.out_linear.",
    "decoder.positions": "decoder_latent_pe",
    "decoder.patch_positions": "decoder_patch_query_embed",
    "decoder.patch_type": "decoder_patch_query_token_type_embed",
    "decoder.transformer.": "decoder.",
    "decoder.norm.": "final_layer.norm_final.",
    "decoder.pixels.": "final_layer.linear.",
}
"""How names begin in arvid -> in the checkpoint."""
LAYERS = {".blocks.": {".mlp.0.": ".mlp.fc1.", ".mlp.2.": ".mlp.fc2."}}


def import_file(file: Path, out: Path) -> Imported:
    """Write the published tokenizer in `file` as a tokenizer file of arvid.

    Raises UserError with a list of tensors that are missing, left over or of another shape.
    """
    weights, unused = _read(file)
    tensors = {name: value for name, value in weights.items() if not name.startswith(PRIOR)}
    try:
        options = read_options(tensors)
        with torch.device("meta"):  # only names and shapes: the weights come from the file
            tokenizer = build({"name": "larp", "hyperparameters": options})
        assert isinstance(tokenizer, Larp)
        state, moves = match(tensors, tokenizer.state_dict(), published_names(tokenizer))
    except UserError as error:
        raise UserError(f"{file}: not the tokenizer of LARP: {error}") from error
    tokenizer.load_state_dict(state, assign=True)
    record = {"imported": "larp", "file": file.name, "sha256": sha256_file(file)}
    save_tokenizer(tokenizer, out, record)
    prior = ["prior_model"] if len(tensors) < len(weights) else []
    return Imported(moves, unused=sorted(unused + prior))


def _read(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The weights in a file, and what else it holds."""
    if file.suffix == ".safetensors":
        return dict(read_weights(file)), []
    content = read_training_checkpoint(file)
    require_dicts(file, content, MODEL)
    model = content[MODEL]
    require_dicts(file, model, WEIGHTS)
    weights = {name: value for name, value in model[WEIGHTS].items() if isinstance(name, str)}
    return weights, [str(name) for name in (*content, *model) if name not in (MODEL, WEIGHTS)]


def read_options(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of the tokenizer with these tensors. Raises UserError if the first of them are missing."""
    num_tokens, dim = _shape(tensors, QUERIES)
    num_codes, channels = _shape(tensors, CODEBOOK)
    rows = math.isqrt(num_tokens)
    if rows**2 != num_tokens or not rows:
        raise UserError(f"its {num_tokens} tokens cannot be laid out in a square.")
    depth = 0
    while BLOCK.format(depth) in tensors:
        depth += 1
    return {
        "rows": rows,
        "columns": rows,
        "dim": dim,
        "depth": depth,
        "num_heads": max(1, dim // HEAD_DIM),
        "num_codes": num_codes,
        "channels": channels,
    }


def _shape(tensors: Mapping[str, Any], name: str) -> tuple[int, int]:
    value = tensors.get(name)
    if not isinstance(value, Tensor) or value.is_nested or value.ndim != 2:
        raise UserError(f"it has no matrix {name}.")
    return value.shape[0], value.shape[1]


def published_names(tokenizer: Larp) -> dict[str, str]:
    """The published name of each tensor, by arvid's name."""
    return {name: published_name(name, NAMES, LAYERS) for name in tokenizer.state_dict()}
