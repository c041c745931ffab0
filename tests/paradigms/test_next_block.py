"""Next-block prediction: order of tokens, what a block sees, steps; block 1 x 1 x 1 is next-token prediction."""

from __future__ import annotations

import math

import pytest
import torch

from arvid.contracts import Condition, ContextSpec, Size, TokenGrid, TokenSpec, UserError
from arvid.paradigms.next_block import NextBlock
from arvid.paradigms.next_block.order import block_order
from arvid.paradigms.next_token import NextToken

PUBLISHED = {(1, 1, 1): 768, (1, 1, 16): 48, (1, 4, 16): 12, (1, 16, 16): 3}
"""Steps for 3 latent frames of 5 x 16 x 16 after 2 given ones (paper, table 2 and figure 9)."""
SIZE = Size(dim=16, depth=2, num_heads=2)
GRID = TokenGrid(3, 4, 4)
SPEC = TokenSpec("discrete", 7, (4, 8, 8), True)


def model(block: tuple[int, int, int], grid: TokenGrid = GRID) -> NextBlock:
    return NextBlock(SPEC, grid, ContextSpec(num_classes=3), SIZE, block=block, dropout=0.0).eval()


def hidden(net: NextBlock, tokens: torch.Tensor) -> torch.Tensor:
    """Teacher-forced hidden states in block-major order."""
    context = net.context(Condition(label=torch.tensor([1])), 1)
    ordered = tokens.flatten(1, 3)[:, net.order]
    return net._teacher_forced(context, ordered[:, : -net.block_len])


@pytest.mark.parametrize("block", PUBLISHED)
def test_published_blocks_are_raster_runs(block: tuple[int, int, int]) -> None:
    order = block_order(TokenGrid(5, 16, 16), block)
    assert torch.equal(order, torch.arange(1280))


def test_other_blocks_are_cut_out_of_the_grid() -> None:
    order = block_order(TokenGrid(2, 2, 4), (2, 2, 2))
    assert order[:8].tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    assert sorted(order.tolist()) == list(range(16))


def test_a_block_that_does_not_tile_is_refused() -> None:
    with pytest.raises(UserError, match="1x3x4 tokens does not tile the grid 3x4x4"):
        block_order(GRID, (1, 3, 4))


@pytest.mark.parametrize(("block", "steps"), PUBLISHED.items())
def test_number_of_steps_is_the_papers(block: tuple[int, int, int], steps: int) -> None:
    net = NextBlock(SPEC, TokenGrid(5, 16, 16), ContextSpec(), SIZE, block=block)
    assert net.num_evaluations(net.grid, prefix_frames=2) == {"transformer": steps}


@pytest.mark.parametrize("block", [(1, 1, 1), (1, 1, 4), (1, 2, 2), (1, 4, 4), (3, 2, 2)])
def test_a_block_sees_itself_and_all_before_it_only(block: tuple[int, int, int]) -> None:
    net = model(block)
    torch.nn.init.normal_(net.positions)
    tokens = torch.randint(7, (1, 3, 4, 4))
    before = hidden(net, tokens)
    num, length = 48, net.block_len
    for k in range(num // length - 1):  # the last block is never an input
        changed = tokens.flatten(1, 3).clone()
        place = net.order[(k + 1) * length - 1]  # last token of block k
        changed[:, place] = (changed[:, place] + 1) % 7
        after = hidden(net, changed.view_as(tokens))
        moved = (before - after).abs().amax(-1)[0] > 1e-7
        first = int(moved.nonzero()[0])
        assert first == (k + 1) * length  # its output block predicts block k + 1
        assert moved[first : first + length].all()


def test_next_token_is_the_one_token_block() -> None:
    torch.manual_seed(0)
    one = model((1, 1, 1))
    torch.manual_seed(0)
    other = NextToken(SPEC, GRID, ContextSpec(num_classes=3), SIZE, dropout=0.0).eval()
    tokens, condition = torch.randint(7, (2, 3, 4, 4)), Condition(label=torch.tensor([0, 2]))
    assert torch.equal(one.loss(tokens, condition)["loss"], other.loss(tokens, condition)["loss"])


def test_untrained_loss_is_near_that_of_guessing() -> None:
    net = model((1, 1, 4))
    loss = net.loss(torch.randint(7, (4, 3, 4, 4)), Condition())["loss"]
    assert abs(loss.item() - math.log(7)) < 0.05


def test_going_beyond_the_learned_positions_is_refused() -> None:
    with pytest.raises(UserError, match="beyond its training length"):
        model((1, 1, 4)).generate(Condition(), TokenGrid(4, 4, 4))


def test_prefix_must_be_whole_blocks() -> None:
    net = model((3, 2, 2))
    with pytest.raises(UserError, match="whole number of blocks"):
        net.generate(Condition(), GRID, prefix=torch.zeros(1, 1, 4, 4, dtype=torch.long))


def test_published_sizes_count_as_the_code_does() -> None:
    """Blocks of 24 x 1536 x 16: 679.96 million parameters (12 d² + 13 d each)."""
    with torch.device("meta"):
        net = NextBlock(
            TokenSpec("discrete", 64_000, (4, 8, 8), True),
            TokenGrid(5, 16, 16),
            ContextSpec(),
            Size(dim=1536, depth=24, num_heads=16),
        )
    blocks = sum(p.numel() for p in net.transformer.parameters())
    assert blocks == 24 * (12 * 1536**2 + 13 * 1536)
    assert sum(p.numel() for p in (*net.embed.parameters(), *net.head.parameters())) == (
        2 * 64_000 * 1536
    )
