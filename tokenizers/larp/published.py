"""Converts the published tokenizer of LARP to arvid's format: `arvid import larp`.

`model.safetensors` of https://huggingface.co/hywang66/LARP-L-long-tokenizer has the weights of the tokenizer, and under
`prior_model.` those of the prior that was trained with it. A checkpoint of the released training has the same tensors
in the entry `sd` of its entry `model`. Width, depth and codebook size follow from the shapes. The sizes of a window, of
a patch and of an attention head do not, so the published sizes are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from arvid.contracts import UserError
from arvid.importing import (
    Imported,
    published_name,
    read_training_checkpoint,
    read_weights,
    require_dicts,
)
from arvid.tokenizers.larp import Larp
from arvid.training.export import import_tokenizer

MODEL, WEIGHTS = "model", "sd"
"""Entry of a training checkpoint, and entry of it that has the weights."""
PRIOR = "prior_model."
"""Prefix of the prior's weights. The tokenizer does not need them."""
HEAD_DIM = 64
"""Dimensions of an attention head in the published network."""
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
"""Part of a name in the checkpoint -> replacements in names that have it."""


def import_file(file: Path, out: Path) -> Imported:
    """Write the published tokenizer in `file` as a tokenizer file of arvid.

    Raises UserError for a file that has no tokenizer of LARP, and with a list of tensors that do not fit.
    """
    weights, unused = _read(file)
    tensors = {name: value for name, value in weights.items() if not name.startswith(PRIOR)}
    moves = import_tokenizer(
        file,
        out,
        tensors,
        partial(read_options, tensors),
        published_names,
        name="larp",
        model="the tokenizer of LARP",
    )
    prior = ["prior_model"] if len(tensors) < len(weights) else []
    return Imported(moves, unused=sorted(unused + prior))


def _read(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The weights in a file, and the names of its other entries."""
    if file.suffix == ".safetensors":
        return dict(read_weights(file)), []
    content = read_training_checkpoint(file)
    require_dicts(file, content, MODEL)
    model = content[MODEL]
    require_dicts(file, model, WEIGHTS)
    weights = {name: value for name, value in model[WEIGHTS].items() if isinstance(name, str)}
    return weights, [str(name) for name in (*content, *model) if name not in (MODEL, WEIGHTS)]


def read_options(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments of the tokenizer with these tensors. Raises UserError without queries or codebook."""
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
