"""Block-major order: the grid is cut into T x H x W blocks, raster inside each, blocks in raster order."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from arvid.contracts import TokenGrid, UserError


def block_order(grid: TokenGrid, block: tuple[int, int, int]) -> Int[Tensor, " n"]:
    """Raster index of each token in block-major order. The identity for blocks that are raster runs.

    Raises UserError if the block does not tile the grid.
    """
    sizes = (grid.t, grid.h, grid.w)
    if any(size % b for size, b in zip(sizes, block, strict=True)):
        raise UserError(
            f"A block of {'x'.join(map(str, block))} tokens does not tile the grid "
            f"{'x'.join(map(str, sizes))}: each side must divide the grid's."
        )
    (bt, bh, bw), (t, h, w) = block, sizes
    index = torch.arange(grid.num_tokens).view(t // bt, bt, h // bh, bh, w // bw, bw)
    return index.permute(0, 2, 4, 1, 3, 5).flatten()
