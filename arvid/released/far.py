"""Convert checkpoints of the released FAR (showlab/FAR, commit e59536a) to arvid's format: `arvid import far`.

A file, such as FAR_L_UCF101_Cond128-c6f798bf.pth, is a dict of tensors (guyuchao/FAR_Models on the Hugging Face hub).
Names and shapes of the tensors define the configuration, except the frames of a training clip: 30 for BAIR, 16 for the
other models. The layout differs:

| | FAR | arvid |
|---|---|---|
| Q, K, V | three matrices | one |
| modulations of a block | two matrices | one |
| channels of rotary pair i | 2i, 2i + 1 | i, i + E/2 |
| time embedding | cosines, sines | sines, cosines |
| last modulation | scale, shift | shift, scale |

The long-context models (FAR_B_Long, FAR_M_Long) have a second patch size for distant frames. arvid has no such network.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arvid.contracts import Paradigm, TokenSpec, UserError
from arvid.importing import Imported, Importer, Move, match, published_name, read_checkpoint
from arvid.ranges import at_least
from arvid.released.generator import convert

SIDE = 8
"""Rows and columns of tokens of all released models."""
OPTIONS = {"form": "far", "conditioning": "modulation"}
LABELS = "label_embedder.embedding_table.weight"
NULL = f"{LABELS}[-1]"
"""The last row of `LABELS`: the null class."""
STACK = "transformer_blocks."
NAMES = {
    "context.label.weight": LABELS,
    "context.null": NULL,
    "network.embed.proj.": "x_embedder.",
    "network.time.project.": "timestep_embedder.linear_1.",
    "network.time.mlp.1.": "timestep_embedder.linear_2.",
    "network.blocks.": STACK,
    "network.modulation.": "norm_out.linear.",
    "head.": "proj_out.",
}
LAYERS = {
    STACK: {
        ".attn.proj.": ".attn.to_out.0.",
        ".mlp.0.": ".mlp.net.0.proj.",
        ".mlp.2.": ".mlp.net.2.",
    }
}
"""Name in arvid -> name in the release, for `published_name`."""
JOINED = {
    ".attn.qkv.": (".attn.to_q.", ".attn.to_k.", ".attn.to_v."),
    ".modulation.": (".norm1.linear.", ".norm2.linear."),
}
"""Layer of a block -> layers of the release whose rows it concatenates."""


def read_config(tensors: Mapping[str, Any], spec: TokenSpec, num_frames: int) -> dict[str, Any]:
    """The arguments of a GeneratorModule as plain data, from the weights' shapes and the tokenizer's tokens.

    Raises UserError for weights that are not FAR's, for a long-context model, and for tokens of another type or width.
    """
    if "context_embedder.weight" in tensors:
        raise UserError(
            "this is a long-context model, which has a second patch size for distant frames. arvid has no such network."
        )
    try:
        dim, channels = tensors["x_embedder.weight"].shape
        (head,) = tensors["transformer_blocks.0.attn.norm_q.weight"].shape
        classes = len(tensors[LABELS]) - 1 if LABELS in tensors else 0
        depth = len({name.split(".")[1] for name in tensors if name.startswith(STACK)})
        num_heads = dim // head
    except (LookupError, ValueError, AttributeError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"these are not FAR's weights ({error}).") from error
    if (spec.type, spec.size) != ("continuous", channels):
        raise UserError(
            f"its tokens are vectors of {channels} numbers, the tokenizer's are {spec.type} of size {spec.size}."
        )
    return {
        "paradigm": {
            "class_path": "arvid.paradigms.frame_diffusion.FrameDiffusion",
            "init_args": OPTIONS,
        },
        "token_type": "continuous",
        "size": {"name": f"d{depth}w{dim}", "dim": dim, "depth": depth, "num_heads": num_heads},
        "clip_shape": [num_frames, SIDE * spec.strides[1], SIDE * spec.strides[2]],
        "label": classes > 0,
        "num_classes": classes,
        "sampling": {"guidance": 2.0 if classes else 1.0, "diffusion_steps": 50},
    }


def from_published(
    tensors: Mapping[str, Any], net: Paradigm
) -> tuple[dict[str, Tensor], list[Move]]:
    """The state dict of `net` from the released tensors, and the list of moves. `net` may be on the meta device.

    Raises UserError with a list of tensors that do not fit.
    """
    own = net.state_dict()
    given = dict(tensors)
    if LABELS in given:
        given[LABELS], given[NULL] = given[LABELS][:-1], given[LABELS][-1:]
    parts: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    pieces: dict[str, Tensor] = {}
    for name in (name for name, value in own.items() if value.numel()):
        sources = _sources(name)
        parts[name] = [f"{name}[{i}]" for i in range(len(sources))] if sources[1:] else [name]
        names.update(zip(parts[name], sources, strict=True))
        pieces.update(zip(parts[name], own[name].chunk(len(sources)), strict=True))
    found, moves = match(given, pieces, names)
    head_dim = len(own["network.blocks.0.attn.norm_q.weight"])
    found = {part: _converted(part, value, head_dim) for part, value in found.items()}
    state = {name: torch.cat([found[part] for part in parts[name]]) for name in parts}
    empty = {name: torch.empty(value.shape) for name, value in own.items() if name not in state}
    whole = {part: name for name in parts for part in parts[name]}
    return state | empty, [replace(move, target=whole[move.target]) for move in moves]


def _sources(own: str) -> list[str]:
    """Names of the released tensors that form one of arvid's tensors."""
    name = published_name(own, NAMES, LAYERS)
    joined = next((part for part in JOINED if part in name), None)
    return [name] if joined is None else [name.replace(joined, part) for part in JOINED[joined]]


def _converted(part: str, value: Tensor, head_dim: int) -> Tensor:
    """A released tensor with its rows or columns in arvid's order. Q, K, V are the parts 0, 1, 2 of qkv."""
    if ".attn.norm_" in part or (".attn.qkv." in part and not part.endswith("[2]")):
        heads = value.unflatten(0, (-1, head_dim))
        return torch.cat([heads[:, ::2], heads[:, 1::2]], dim=1).flatten(0, 1)
    if part.startswith("network.modulation."):
        return value.roll(len(value) // 2, 0)
    if part == "network.time.project.weight":  # FAR has cosines first, arvid has sines first
        return value.roll(value.shape[1] // 2, 1)
    return value


class FarImporter(Importer):
    """Import FAR: FILE is a released model, such as FAR_L_UCF101_Cond128-c6f798bf.pth. Long-context models are refused.

    Its autoencoder is a DC-AE in the layout of diffusers: put the released model_16x_c32_config.json (8x for 64 pixels,
    32x for 256) into a folder as config.json, and DCAE_UCF101_Res128-bb9d1258.pth as diffusion_pytorch_model.bin.
    """

    suffix = ".ckpt"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tokenizer", required=True, help="its DC-AE, as pretrained:FOLDER")
        parser.add_argument(
            "--frames",
            type=at_least(1).integer,
            default=16,
            help="frames of a training clip (default: 16; 30 for BAIR)",
        )

    def run(self, file: Path, out: Path, options: argparse.Namespace) -> Imported:
        tensors = read_checkpoint(file)
        moves = convert(
            "far",
            file,
            out,
            tokenizer=options.tokenizer,
            config=partial(read_config, tensors, num_frames=options.frames),
            weights=partial(from_published, tensors),
        )
        return Imported(moves, unused=[])
