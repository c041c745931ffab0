"""Block-major order of a token grid: T x H x W blocks in raster order, and raster order inside each block."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from arvid.contracts import TokenGrid, UserError

Block = tuple[int, int, int]


def block_order(grid: TokenGrid, block: Block) -> Int[Tensor, " n"]:
    """Raster index of each token in block-major order; the identity for blocks that are raster runs.

    Raises UserError if the block does not tile the grid.
    """
    sizes = (grid.t, grid.h, grid.w)
    if min(block) < 1 or any(size % b for size, b in zip(sizes, block, strict=True)):
        raise UserError(
            f"A block of {'x'.join(map(str, block))} tokens does not tile the grid "
            f"{'x'.join(map(str, sizes))}: each side must divide the grid's."
        )
    (bt, bh, bw), (t, h, w) = block, sizes
    index = torch.arange(grid.num_tokens, device="cpu").view(t // bt, bt, h // bh, bh, w // bw, bw)
    return index.permute(
        0, 2, 4, 1, 3, 5
    ).flatten()  # the axes of blocks, then those inside a block


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
