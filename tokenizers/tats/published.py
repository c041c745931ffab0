"""Converts the published VQGANs of TATS to arvid's format: `arvid import tats`.

The files are listed at https://github.com/songweige/TATS (UCF-101, Sky-Timelapse, Taichi-HD, MUGEN, AudioSet-Drums).
They are checkpoints of Lightning 1.5. `state_dict` has the weights of tokenizer, discriminators and perceptual loss.
`hyper_parameters` has the arguments of the training, which define the size of the network. The codebook also has two
moving averages of its training, which are not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from arvid.contracts import UserError
from arvid.importing import Imported, read_training_checkpoint, require_dicts
from arvid.tokenizers.tats import Tats
from arvid.tokenizers.tats.network import SameConv3d, SameConvTranspose3d
from arvid.training.export import import_tokenizer

WEIGHTS, ARGUMENTS = "state_dict", "hyper_parameters"
PARTS = ("encoder.", "decoder.", "pre_vq_conv.", "post_vq_conv.", "codebook.embeddings")
"""Parts of the tokenizer; other weights belong to its training."""
OPTIONS = {
    "base": "n_hiddens",
    "strides": "downsample",
    "num_codes": "n_codes",
    "channels": "embedding_dim",
    "norm": "norm_type",
}
"""Constructor argument -> argument of the training."""
FIXED = {"image_channels": 3, "padding_type": "replicate"}
"""Arguments with the same value in all published models. Some files lack them."""


def import_file(file: Path, out: Path) -> Imported:
    """Write the published tokenizer in `file` as a tokenizer file of arvid.

    Raises UserError for unsupported arguments, and with a list of tensors that do not fit.
    """
    checkpoint = read_training_checkpoint(file)
    require_dicts(file, checkpoint, WEIGHTS, ARGUMENTS)
    weights = {name: v for name, v in checkpoint[WEIGHTS].items() if isinstance(name, str)}
    tensors = {name: value for name, value in weights.items() if name.startswith(PARTS)}
    moves = import_tokenizer(
        file,
        out,
        tensors,
        partial(read_options, checkpoint[ARGUMENTS]),
        published_names,
        name="tats",
        model="a VQGAN of TATS",
    )
    others = {name.partition(".")[0] for name in weights if not name.startswith(PARTS)}
    return Imported(moves, unused=sorted(others | checkpoint.keys() - {WEIGHTS, ARGUMENTS}))


def read_options(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from the training's. Raises UserError if some are missing or of another model."""
    given = getattr(hyper_parameters.get("args"), "__dict__", {})
    missing = [name for name in OPTIONS.values() if name not in given]
    if missing:
        raise UserError(f"the arguments of its training lack {', '.join(missing)}.")
    faults = [
        f"{name} is {given[name]!r:.40}, not {value!r}"
        for name, value in FIXED.items()
        if given.get(name, value) != value
    ]
    if faults:
        raise UserError(f"{'; '.join(faults)}.")
    options = {name: given[key] for name, key in OPTIONS.items()}
    if isinstance(options["strides"], (list, tuple)):
        options["strides"] = list(options["strides"])
    return options


def published_names(tokenizer: Tats) -> dict[str, str]:
    """The published name of each tensor, by arvid's name."""
    inner: dict[type[nn.Module], str] = {SameConv3d: "conv.", SameConvTranspose3d: "convt."}
    found = {}
    for own in tokenizer.state_dict():
        module, _, name = own.rpartition(".")
        found[own] = f"{module}.{inner.get(type(tokenizer.get_submodule(module)), '')}{name}"
    return found
