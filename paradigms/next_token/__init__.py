"""Next-token prediction: one token at a time in raster order, the baseline of both papers.

It has the network, mask and loss of next-block prediction, with blocks of one token.
"""

from __future__ import annotations

from arvid.contracts import ContextSpec, Size, TokenGrid, TokenSpec
from arvid.nn.attention import BlockStyle
from arvid.nn.heads import DiffusionOptions
from arvid.paradigms.next_block.layout import Start
from arvid.paradigms.next_block.paradigm import History, NextBlock

__all__ = ["NextToken"]


class NextToken(NextBlock):
    """Next-block prediction with a 1 x 1 x 1 block. For the arguments see `NextBlock`."""

    def __init__(
        self,
        spec: TokenSpec,
        grid: TokenGrid,
        context: ContextSpec,
        size: Size,
        *,
        start: Start = "block",
        style: BlockStyle = "gpt",
        num_positions: int | None = None,
        num_other_ids: int = 0,
        mask_pads: bool = True,
        history: History = "complete",
        dropout: float = 0.1,
        condition_dropout: float = 0.1,
        diffusion: DiffusionOptions = DiffusionOptions(),
    ) -> None:
        super().__init__(
            spec,
            grid,
            context,
            size,
            block=(1, 1, 1),
            start=start,
            style=style,
            num_positions=num_positions,
            num_other_ids=num_other_ids,
            mask_pads=mask_pads,
            history=history,
            dropout=dropout,
            condition_dropout=condition_dropout,
            diffusion=diffusion,
        )
