"""Converts the published tokenizers of Next-Block Prediction to arvid's format: `arvid import nbp-tokenizer`.

`magvit2_ucf.pt` and `magvit2_k600.pt` (https://huggingface.co/ShuhuaiRen/NBP-tokenizer-ucf and NBP-tokenizer-k600) hold
a dict with the weights under `model_state_dict`, with DDP's prefix `module.` in the names. The layers have the same
order as arvid's; only names differ. The bottleneck has no weights, and pixels are in [0, 1].
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from arvid.contracts import UserError
from arvid.files import sha256_file
from arvid.importing import Imported, match, read_checkpoint, require_dicts, strip_prefix
from arvid.nn.causal_conv import PUBLISHED
from arvid.tokenizers.magvit_fsq import MagvitFSQ
from arvid.training.export import save_tokenizer

WEIGHTS = "model_state_dict"
PREFIX = "module."
BACKBONE = PUBLISHED
NAMES = (
    (r"^(encoder|decoder)\.layers\.", r"\1_layers."),
    (r"\.branch\.", ".fn."),  # norm, swish, convolution, norm, swish
    (r"\.last\.", ".fn.5."),
    (r"\.skip\.", ".residual_fn.0."),
    (r"\.slope$", ".beta"),
)
"""Replacements, in this order, that turn arvid's names into the published ones."""


def import_file(file: Path, out: Path) -> Imported:
    """Write the published tokenizer in `file` as a tokenizer file of arvid.

    Raises UserError with a list of tensors that are missing, left over or of another shape.
    """
    checkpoint = read_checkpoint(file)
    require_dicts(file, checkpoint, WEIGHTS)
    with torch.device("meta"):  # only names and shapes: the weights come from the file
        tokenizer = MagvitFSQ(backbone=BACKBONE, unit_range=True)
    tensors = strip_prefix(checkpoint[WEIGHTS], PREFIX)
    try:
        state, moves = match(tensors, tokenizer.state_dict(), published_names(tokenizer))
    except UserError as error:
        raise UserError(f"{file}: not the published tokenizer: {error}") from error
    tokenizer.load_state_dict(state, assign=True)
    record = {"imported": "nbp-tokenizer", "file": file.name, "sha256": sha256_file(file)}
    save_tokenizer(tokenizer, out, record)
    return Imported(moves, unused=[name for name in checkpoint if name != WEIGHTS])


def published_names(tokenizer: MagvitFSQ) -> dict[str, str]:
    """The published name of each tensor, by arvid's name."""
    # The encoder's last layer is a plain convolution there, without arvid's inner module `conv`.
    head = f"encoder_layers.{len(tokenizer.encoder.layers) - 1}."
    rules = (*NAMES, (rf"^{re.escape(head)}conv\.", head))
    names = {}
    for own in tokenizer.state_dict():
        name = own
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        names[own] = name
    return names
