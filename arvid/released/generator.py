"""Shared part of the importers of released generators: build the network, convert the weights, write the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arvid import registry
from arvid.contracts import ContextSpec, Paradigm, Size, TokenSpec, UserError
from arvid.files import sha256_file
from arvid.importing import Move
from arvid.training.export import load_tokenizer
from arvid.training.generator_file import save_generator
from arvid.training.instantiate import bind

Converted = tuple[dict[str, Tensor], list[Move]]
"""A state dict, and the list of moves."""


def build(config: Mapping[str, Any], spec: TokenSpec) -> Paradigm:
    """The untrained paradigm of a configuration.

    Args:
        config: arguments of a GeneratorModule as plain data, with `label` and `num_classes`.
        spec: the tokenizer's tokens.
    """
    chosen = config["paradigm"]
    cls = registry.get("paradigms", chosen["class_path"])
    factory = bind(cls, chosen["init_args"], what=cls.__name__, positional=4)
    context = ContextSpec(conditions={"label": config["num_classes"]} if config["label"] else {})
    net: Paradigm = factory(spec, spec.grid(*config["clip_shape"]), context, Size(**config["size"]))
    return net


def convert(
    system: str,
    file: Path,
    out: Path,
    *,
    tokenizer: str,
    config: Callable[[TokenSpec], dict[str, Any]],
    weights: Callable[[Paradigm], Converted],
) -> list[Move]:
    """Write a released checkpoint as one that `load_generator` reads. Returns the list of moves.

    Args:
        system: short name of the released system, for the record.
        file: the released checkpoint, for its name and checksum.
        out: file to write.
        tokenizer: name or file of the system's autoencoder.
        config: returns the arguments of a GeneratorModule as plain data, for the tokenizer's tokens.
        weights: returns the state dict for the paradigm. The paradigm is on the meta device.

    Raises UserError if weights and tokenizer do not fit.
    """
    video = load_tokenizer(tokenizer)
    try:
        arguments = config(video.spec)
        with torch.device("meta"):  # only names and shapes: the weights come from the file
            net = build(arguments, video.spec)
        state, moves = weights(net)
    except UserError as error:
        where = f"{file}: no {system.upper()} on the tokens of {tokenizer}"
        raise UserError(f"{where}: {error}") from error
    save_generator(
        out,
        config=arguments,
        tensors={f"paradigm.{name}": value for name, value in state.items()},
        tokenizer=video,
        record={"imported": system, "file": file.name, "sha256": sha256_file(file)},
    )
    return moves
