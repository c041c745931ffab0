"""Block-major order: which tokens are a block, in raster order inside each, and blocks in raster order.

Adjacent: the grid is cut into T x H x W blocks. Strided: a frame is cut into H x W regions, and a block has the tokens
at one place of all regions, in T frames (arXiv 2412.15119).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from arvid.contracts import TokenGrid, UserError

Block = tuple[int, int, int]
Spacing = Literal["adjacent", "strided"]


def block_order(grid: TokenGrid, block: Block, spacing: Spacing = "adjacent") -> Int[Tensor, " n"]:
    """Raster index of each token in block-major order. The identity for blocks that are raster runs.

    Raises UserError if the block does not tile the grid.
    """
    sizes = (grid.t, grid.h, grid.w)
    if min(block) < 1 or any(size % b for size, b in zip(sizes, block, strict=True)):
        raise UserError(
            f"A block of {'x'.join(map(str, block))} tokens does not tile the grid "
            f"{'x'.join(map(str, sizes))}: each side must divide the grid's."
        )
    (bt, bh, bw), (t, h, w) = block, sizes
    index = torch.arange(grid.num_tokens, device="cpu")
    if spacing == "strided":
        regions = index.view(t // bt, bt, bh, h // bh, bw, w // bw)
        return regions.permute(0, 3, 5, 1, 2, 4).flatten()
    blocks = index.view(t // bt, bt, h // bh, bh, w // bw, bw)
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten()


def raster_block(num_tokens: int, grid: TokenGrid) -> Block:
    """The block whose tokens are a raster run of `num_tokens`. (The released code only has such blocks.)

    Raises UserError if no such block tiles the grid.
    """
    row, frame = grid.w, grid.tokens_per_frame
    for sides, unit, count in (
        ((1, 1, num_tokens), 1, row),
        ((1, num_tokens // row, row), row, grid.h),
        ((num_tokens // frame, grid.h, grid.w), frame, grid.t),
    ):
        num = num_tokens // unit
        if num_tokens % unit == 0 and 0 < num <= count and count % num == 0:
            return sides
    raise UserError(
        f"No block that is a run of {num_tokens} tokens tiles the grid {grid.t}x{grid.h}x{grid.w}."
    )
