"""Make batches of examples, and convert pixels between files and models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from arvid.errors import UserError
from arvid.nn.conditions import condition, require_same
from arvid.nn.text import KnownFeatures

Example = dict[str, Any]
"""`video` float (3, T, H, W) in [-1, 1] or `tokens`, with `caption` (str) and the values of conditions by name (see
`arvid.nn.conditions`). If tokens are drawn from a posterior, `tokens` are its means and `spread` their deviations.
`text` are the cached features of the caption (n, D), or None."""
TENSORS = ("video", "tokens", "spread")
OTHERS = ("caption", "text", "unreadable", *TENSORS)
"""Keys of an example that are not conditions."""


def normalise(video: UInt8[np.ndarray, "t h w 3"]) -> Float[Tensor, "3 t h w"]:
    """Convert frames to the models' input: float (3, T, H, W) in [-1, 1]."""
    return torch.from_numpy(video).permute(3, 0, 1, 2).float() / 127.5 - 1


def to_uint8(
    video: Float[Tensor, "b 3 t h w"], *, truncate: bool = False
) -> UInt8[Tensor, "b t h w 3"]:
    """Convert frames to bytes for files and metrics, rounded to the nearest level, or with `truncate` to the one below.

    Raises UserError for pixels that are not finite.
    """
    if not torch.isfinite(video).all():
        raise UserError(
            "The pixels that a tokenizer decoded are not finite. Check its weights, or compute in a wider type."
        )
    levels = (video.float() * 127.5 + 127.5).clamp(0, 255)
    levels = levels.floor() if truncate else levels.round()
    return levels.to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """Stack tensors and conditions, keep captions as a list. Raises UserError if the examples' conditions differ."""
    batch: dict[str, Any] = {"caption": [example["caption"] for example in examples]}
    given = [{k: v for k, v in example.items() if k not in OTHERS} for example in examples]
    require_same(given)
    for name in given[0]:
        values = condition(name).batch([values[name] for values in given])
        batch[name] = torch.from_numpy(values)
    for key in TENSORS:
        if key in examples[0]:
            batch[key] = torch.stack([example[key] for example in examples])
    known = KnownFeatures.of([example.get("text") for example in examples])
    return batch if known is None else {**batch, "text": known}
