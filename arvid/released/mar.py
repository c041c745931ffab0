"""Convert checkpoints of the released MAR (LTH14/mar, commit fe470ac) to arvid's format: `arvid import mar`.

`checkpoint-last.pth` has the weights (`model`), their EMA (`model_ema`) and the state of the training. Names and shapes
of the tensors define the configuration, except the number of heads: 12 at width 768, otherwise 16. The layout differs
in two points. The modulations of the diffusion MLP are shift, scale, gate in MAR, and scale, shift, gate in arvid. The
channel is the first axis of a patch in MAR, and the last in arvid.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from arvid.contracts import Paradigm, TokenSpec, UserError
from arvid.importing import (
    Imported,
    Importer,
    Move,
    match,
    published_name,
    read_checkpoint,
    require_dicts,
    strip_prefix,
)
from arvid.released.generator import convert

SAMPLING = {"guidance": 3.0, "guidance_ramp": True, "diffusion_steps": 100, "num_sets": 64}
OPTIONS = {"num_sets": 64, "masking": "truncated", "dropout": 0.1, "diffusion": {"form": "mar"}}
NAMES = {
    "context.label.": "class_emb.",
    "context.null": "fake_latent",
    "network.embed.project.": "z_proj.",
    "network.mask_token": "mask_token",
    "network.encoder.positions": "encoder_pos_embed_learned",
    "network.encoder.norm_in.": "z_proj_ln.",
    "network.encoder.layers.blocks.": "encoder_blocks.",
    "network.encoder.norm_out.": "encoder_norm.",
    "network.encoder.project.": "decoder_embed.",
    "network.positions": "decoder_pos_embed_learned",
    "network.layers.blocks.": "decoder_blocks.",
    "network.norm.": "decoder_norm.",
    "network.head_positions": "diffusion_pos_embed_learned",
    "head.net.embed.": "diffloss.net.input_proj.",
    "head.net.time.": "diffloss.net.time_embed.mlp.",
    "head.net.condition.": "diffloss.net.cond_embed.",
    "head.net.blocks.": "diffloss.net.res_blocks.",
    "head.net.modulation.": "diffloss.net.final_layer.adaLN_modulation.1.",
    "head.net.head.": "diffloss.net.final_layer.linear.",
}
"""Beginning of a name in arvid -> in the release."""
LAYERS = {
    "coder_blocks.": {".mlp.0.": ".mlp.fc1.", ".mlp.2.": ".mlp.fc2."},
    "res_blocks.": {".norm1.": ".in_ln.", ".modulation.": ".adaLN_modulation.1."},
}
"""Part of a released name -> names of layers in arvid -> in the release, for `published_name`."""


def read_config(tensors: Mapping[str, Tensor], spec: TokenSpec) -> dict[str, Any]:
    """The arguments of a GeneratorModule as plain data, from the weights' shapes and the tokenizer's tokens.

    Raises UserError for weights that are not MAR's, and for tokens of another type or width.
    """
    try:
        classes, dim = tensors["class_emb.weight"].shape
        width, vector = tensors["diffloss.net.input_proj.weight"].shape
        num = tensors["diffusion_pos_embed_learned"].shape[1]
        copies = tensors["encoder_pos_embed_learned"].shape[1] - num
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"these are not MAR's weights ({error}).") from error
    patch = math.isqrt(vector // spec.size)
    if spec.type != "continuous" or patch**2 * spec.size != vector:
        raise UserError(
            f"its tokens are vectors of {vector} numbers, the tokenizer's are {spec.type} of size {spec.size}."
        )
    depth, encoder, head = (
        len({name.removeprefix(stack).split(".")[0] for name in tensors if name.startswith(stack)})
        for stack in ("decoder_blocks.", "encoder_blocks.", "diffloss.net.res_blocks.")
    )
    side = math.isqrt(num) * patch
    options = {**OPTIONS, "patch": patch, "context_copies": copies}
    options["encoder_share"] = encoder / (encoder + depth)
    return {
        "paradigm": {"class_path": "arvid.paradigms.masked.Masked", "init_args": options},
        "token_type": "continuous",
        "size": {
            "name": f"mar-{dim}",
            "dim": dim,
            "depth": encoder + depth,
            "num_heads": 12 if dim == 768 else 16,
            "head_dim": width,
            "head_depth": head,
        },
        "clip_shape": [1, side * spec.strides[1], side * spec.strides[2]],
        "label": True,
        "num_classes": classes,
        "sampling": SAMPLING,
    }


def from_published(
    tensors: Mapping[str, Tensor], net: Paradigm
) -> tuple[dict[str, Tensor], list[Move]]:
    """The state dict of `net` from the released tensors, and the list of moves. `net` may be on the meta device.

    Raises UserError with a list of tensors that do not fit.
    """
    own = net.state_dict()
    p = math.isqrt(own["network.embed.project.weight"].shape[1] // net.spec.size)
    state, moves = match(tensors, own, {name: published_name(name, NAMES, LAYERS) for name in own})
    for name, value in state.items():
        if name in ("network.embed.project.weight", "head.net.embed.weight"):
            state[name] = rearrange(value, "d (c p q) -> d (p q c)", p=p, q=p)
        elif name.startswith("head.net.head."):
            state[name] = rearrange(value, "(k c p q) ... -> (k p q c) ...", k=2, p=p, q=p)
        elif ".modulation." in name:
            shift, scale, *gate = value.split(len(own["head.net.embed.bias"]))
            state[name] = torch.cat([scale, shift, *gate])
    return state, moves


class MarImporter(Importer):
    """Import an image model of MAR: FILE is its checkpoint-last.pth. The EMA weights are used."""

    suffix = ".ckpt"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tokenizer", required=True, help="KL-16, as pretrained:FOLDER")

    def run(self, file: Path, out: Path, options: argparse.Namespace) -> Imported:
        with torch.serialization.safe_globals([argparse.Namespace]):  # arguments of the training
            checkpoint = read_checkpoint(file)
        entry = next((key for key in ("model_ema", "model") if key in checkpoint), None)
        if entry is not None:
            require_dicts(file, checkpoint, entry)
        tensors = strip_prefix(checkpoint if entry is None else checkpoint[entry], "module.")
        moves = convert(
            "mar",
            file,
            out,
            tokenizer=options.tokenizer,
            config=partial(read_config, tensors),
            weights=partial(from_published, tensors),
        )
        return Imported(moves, unused=[key for key in checkpoint if entry and key != entry])
