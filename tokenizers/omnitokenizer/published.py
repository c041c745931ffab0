"""Converts the published VQ tokenizers of OmniTokenizer to arvid's format: `arvid import omnitokenizer`.

The files are at https://huggingface.co/Daniel0724/OmniTokenizer: imagenet_k600.ckpt, imagenet_ucf.ckpt,
imagenet_mit.ckpt, imagenet_sthv2.ckpt, celebahq_ucf.ckpt, celebahq_k600.ckpt, ffhq_ucf.ckpt, ffhq_k600.ckpt. They are
checkpoints of Lightning. Their `state_dict` has the weights of tokenizer, discriminators and perceptual loss. Their
`hyper_parameters` has the arguments of the training, which give the size of the network. In some files the names of two
arguments have "casual" in place of "causal".

Files named `..._vae.ckpt` have continuous tokens. Files for images alone (imagenet_only, celebahq, ffhq) have other
positional embeddings. Both are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from arvid.contracts import UserError
from arvid.importing import Imported, published_name, read_training_checkpoint, require_dicts
from arvid.tokenizers.omnitokenizer import OmniTokenizer
from arvid.training.export import import_tokenizer

WEIGHTS, ARGUMENTS = "state_dict", "hyper_parameters"
PARTS = ("encoder.", "decoder.", "pre_vq_conv.", "post_vq_conv.", "codebook.embeddings")
"""Prefixes of the tokenizer's tensors. Other tensors belong to its training."""
UNUSED = (".spatial_rel_pos_bias.", ".context_norm.", ".relative_position_index")
"""Parts of the names of tensors that are constants, or have no effect with PyTorch 2.1 or newer."""
OPTIONS = {
    "dim": "embedding_dim",
    "encoder_blocks": "enc_block",
    "decoder_blocks": "dec_block",
    "temporal_depth": "temporal_depth",
    "num_heads": "heads",
    "head_dim": "dim_head",
    "window": "twod_window_size",
    "num_codes": "n_codes",
    "channels": "codebook_dim",
}
"""Constructor argument -> argument of the training."""
SIZES = ("patch_size", "temporal_patch_size", "ff_mult")
"""Further arguments of the training, which must be numbers above 0. `strides` and `hidden` follow from them."""
FIXED: dict[str, tuple[Any, Any]] = {
    "patch_embed": ("linear", "linear"),
    "spatial_pos": ("rope", "rel"),
    "causal_in_temporal_transformer": (True, False),
    "causal_in_peg": (True, False),
    "l2_code": (True, False),
    "use_vae": (False, False),
    "use_external_codebook": (False, False),
    "defer_temporal_pool": (False, False),
    "defer_spatial_pool": (False, False),
    "gen_upscale": (None, None),
    "image_channels": (3, 3),
}
"""Arguments with the same value in all published models: (that value, the value where a file lacks the argument)."""
NAMES = {
    "first_patches.": "encoder.to_patch_emb_first_frame.",
    "patches.": "encoder.to_patch_emb.",
    "encoder_frame.": "encoder.enc_spatial_transformer.",
    "encoder_frames.": "encoder.enc_temporal_transformer.",
    "to_code.": "pre_vq_conv.1.",
    "codebook.": "codebook.",
    "from_code.": "post_vq_conv.1.",
    "decoder_frames.": "decoder.dec_temporal_transformer.",
    "decoder_frame.": "decoder.dec_spatial_transformer.",
    "first_pixels.linear.": "decoder.to_pixels_first_frame.0.",
    "pixels.linear.": "decoder.to_pixels.0.",
}
"""How names begin in arvid -> in the checkpoint."""
LAYERS = {
    ".to_patch_emb": {".norm_in.": ".1.", ".linear.": ".2.", ".norm_out.": ".3."},
    ".layers.": {
        ".nearby.": ".0.dsconv.",
        ".attention.": ".1.",
        ".mlp.norm.": ".3.0.",
        ".mlp.widen.": ".3.1.",
        ".mlp.narrow.": ".3.4.",
    },
}
"""Part of a name in the checkpoint -> replacements in names that have it."""


def import_file(file: Path, out: Path) -> Imported:
    """Write the published tokenizer in `file` as a tokenizer file of arvid.

    Raises UserError for unsupported arguments, and with a list of tensors that do not fit.
    """
    checkpoint = read_training_checkpoint(file)
    require_dicts(file, checkpoint, WEIGHTS, ARGUMENTS)
    weights = {name: v for name, v in checkpoint[WEIGHTS].items() if isinstance(name, str)}
    tensors = {name: value for name, value in weights.items() if _is_used(name)}
    moves = import_tokenizer(
        file,
        out,
        tensors,
        partial(read_options, checkpoint[ARGUMENTS]),
        published_names,
        name="omnitokenizer",
        model="a VQ tokenizer of OmniTokenizer",
    )
    others = {name.partition(".")[0] for name in weights if not name.startswith(PARTS)}
    others |= {str(name) for name in checkpoint if name not in (WEIGHTS, ARGUMENTS)}
    return Imported(moves, unused=sorted(others))


def read_options(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments from the training's. Raises UserError if some are missing or of another model."""
    given = getattr(hyper_parameters.get("args"), "__dict__", {})
    given = {str(name).replace("casual", "causal"): value for name, value in given.items()}
    missing = [name for name in (*OPTIONS.values(), *SIZES) if name not in given]
    if missing:
        raise UserError(f"the arguments of its training lack {', '.join(missing)}.")
    faults = [
        f"{name} is {given.get(name, absent)!r:.40}, not {value!r}"
        for name, (value, absent) in FIXED.items()
        if _differs(given.get(name, absent), value)
    ]
    if faults:
        raise UserError(f"{'; '.join(faults)}.")
    options = {name: given[key] for name, key in OPTIONS.items()}
    for name in SIZES:
        if type(given[name]) not in (int, float) or not 0 < given[name] < 2**20:
            raise UserError(f"{name} must be a number above 0, not {given[name]!r:.40}.")
    side = given["patch_size"]
    options["strides"] = [given["temporal_patch_size"], side, side]
    if isinstance(options["dim"], int):
        options["hidden"] = int(given["ff_mult"] * (2 / 3) * options["dim"])
    return options


def _differs(found: Any, value: Any) -> bool:
    return isinstance(found, torch.Tensor) or found != value  # a tensor's != is another tensor


def published_names(tokenizer: OmniTokenizer) -> dict[str, str]:
    """The published name of each tensor, by arvid's name."""
    return {name: published_name(name, NAMES, LAYERS) for name in tokenizer.state_dict()}


def _is_used(name: str) -> bool:
    return name.startswith(PARTS) and not any(part in name for part in UNUSED)
