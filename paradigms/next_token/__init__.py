"""Next-token prediction: one token at a time in raster order, the baseline of both papers.

It has the network, mask and loss of next-block prediction, with blocks of one token.
"""

from __future__ import annotations

from typing import Any

from arvid.contracts import ContextSpec, Size, TokenGrid, TokenSpec
from arvid.paradigms.next_block.paradigm import NextBlock

__all__ = ["NextToken"]


class NextToken(NextBlock):
    """Next-block prediction with a 1 x 1 x 1 block.

    Its options are those of `NextBlock` except `block` and the three that need larger blocks: `spacing`, `positions`
    and `reveal`. jsonargparse and `arvid.training.instantiate.parameters` find them in the call below.
    """

    def __init__(
        self, spec: TokenSpec, grid: TokenGrid, context: ContextSpec, size: Size, **options: Any
    ) -> None:
        super().__init__(
            spec,
            grid,
            context,
            size,
            block=(1, 1, 1),
            spacing="adjacent",
            positions="sequence",
            reveal=False,
            **options,
        )
