"""Next-block prediction: order of tokens, sequences, attention mask, losses; 1 x 1 x 1 is next-token prediction."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from arvid.contracts import Condition, ContextSpec, Request, Size, TokenGrid, TokenSpec, UserError
from arvid.nn.heads import DiffusionOptions
from arvid.paradigms.next_block import NextBlock
from arvid.paradigms.next_block.decoding import NextBlockSampling
from arvid.paradigms.next_block.layout import Layout, Start, block_order, raster_block
from arvid.paradigms.next_token import NextToken
from arvid.training.instantiate import bind, parameters

PUBLISHED = [(1, 1, 1), (1, 1, 16), (1, 4, 16), (1, 16, 16)]
"""The paper's blocks of 5 x 16 x 16 tokens: runs of 1, 16, 64 and 256 in raster order."""
STARTS = ["none", "block", "hybrid"]
SIZE = Size(dim=16, depth=2, num_heads=2)
GRID = TokenGrid(4, 4, 4)
SPEC = TokenSpec("discrete", 7, (4, 8, 8), True)
CLASSES = ContextSpec(conditions={"label": 3})
WORDS = ContextSpec(text_dim=0, text_len=8, text_vocab=20)


def model(context: ContextSpec = CLASSES, grid: TokenGrid = GRID, **options: Any) -> NextBlock:
    """A small model with random positional embeddings. (They are 0 before training.)"""
    net = NextBlock(SPEC, grid, context, SIZE, dropout=0.0, **options).eval()
    for name, parameter in net.named_parameters():
        if name.endswith("positions"):
            torch.nn.init.normal_(parameter)
    return net


def hidden(net: NextBlock, tokens: Tensor, condition: Condition | None = None) -> Tensor:
    """Teacher-forced hidden states in block-major order."""
    condition = condition or Condition(values={"label": torch.zeros(len(tokens), dtype=torch.long)})
    context = net.context(condition, len(tokens))
    ordered = tokens.flatten(1, 3)[:, net.order]
    return net.hidden_states(context, net.padding(condition.text_mask), ordered, net.layout)


ACTIONS = ContextSpec(frame_conditions={"actions": 5}, frames_per_latent=4)


@pytest.mark.parametrize(
    ("block", "start"),
    [
        ((1, 1, 4), "block"),
        ((1, 1, 4), "none"),
        ((1, 4, 4), "hybrid"),
        ((2, 2, 2), "block"),
        ((1, 1, 1), "block"),
    ],
)
def test_actions_are_added_where_their_frame_is_predicted(
    block: tuple[int, int, int], start: Start
) -> None:
    """The input at each position depends on the actions of its predicted frame, and on no others."""
    net = model(ACTIONS, block=block, start=start)
    tokens = torch.randint(7, (1, 4, 4, 4)).flatten(1)[:, net.order]
    frames = torch.zeros(1, 4, SIZE.dim, requires_grad=True)
    length = net.layout.length(list(net.layout.steps())[-1])
    x = net.embed_sequence(net.context(Condition(), 1), tokens, 0, length, frames)
    num = net.layout.num_tokens - net.layout.first_predicted
    for i, frame in enumerate((net.order[net.layout.first_predicted :] // 16).tolist()):
        (gradient,) = torch.autograd.grad(x[0, length - num + i].sum(), frames, retain_graph=True)
        assert gradient[0].any(1).nonzero().flatten().tolist() == [frame]


@pytest.mark.parametrize("start", ["block", "hybrid"])
def test_actions_with_given_frames_cache_and_guidance(start: Start) -> None:
    net = model(ACTIONS, block=(1, 4, 4), start=start)
    given = Condition(values={"actions": torch.randint(5, (2, 4, 4))})
    prefix = torch.randint(7, (2, 1, 4, 4))
    drawn = [
        net.generate(
            Request(
                given,
                GRID,
                prefix=prefix,
                options=NextBlockSampling(guidance=2.0, use_cache=use_cache),
                generator=torch.Generator().manual_seed(0),
            )
        )
        for use_cache in (True, False)
    ]
    assert torch.equal(*drawn)
    assert torch.equal(drawn[0][:, :1], prefix)


# Order


@pytest.mark.parametrize("block", PUBLISHED)
def test_published_blocks_are_raster_runs(block: tuple[int, int, int]) -> None:
    grid = TokenGrid(5, 16, 16)
    assert torch.equal(block_order(grid, block), torch.arange(1280))
    assert raster_block(math.prod(block), grid) == block


def test_strided_blocks_have_one_token_of_each_region() -> None:
    order = block_order(TokenGrid(2, 4, 6), (1, 2, 3), "strided").view(8, 6)
    regions = [(0, 0), (0, 2), (0, 4), (2, 0), (2, 2), (2, 4)]
    places = [(t, r, c) for t in (0, 1) for r in (0, 1) for c in (0, 1)]
    for block, (t, r, c) in zip(order.tolist(), places, strict=True):
        assert block == [24 * t + 6 * (top + r) + left + c for top, left in regions]
    assert torch.equal(block_order(GRID, (1, 1, 1), "strided"), torch.arange(64))
    assert torch.equal(block_order(GRID, (2, 4, 4), "strided"), block_order(GRID, (2, 4, 4)))


def test_strided_blocks_generate_and_continue() -> None:
    """PAR's sequence: the first block token by token, then block by block."""
    net = model(block=(1, 2, 2), spacing="strided", start="hybrid", style="llama")
    assert net.num_evaluations(GRID)["transformer"] == 4 + 15
    prefix = torch.randint(7, (1, 2, 4, 4))
    clip = net.generate(Request(Condition(), GRID, prefix=prefix))
    assert torch.equal(clip[:, :2], prefix)
    clip = net.generate(Request(Condition(), GRID, options=net.options_for("discrete")()))
    assert clip.shape == (1, 4, 4, 4)


@pytest.mark.parametrize("num", [3, 24, 48, 512])
def test_runs_that_are_no_blocks_are_refused(num: int) -> None:
    with pytest.raises(UserError, match=f"run of {num} tokens"):
        raster_block(num, TokenGrid(5, 16, 16))


def test_other_blocks_are_cut_out_of_the_grid() -> None:
    order = block_order(TokenGrid(2, 2, 4), (2, 2, 2))
    assert order[:8].tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    assert sorted(order.tolist()) == list(range(16))


def test_a_block_that_does_not_tile_is_refused() -> None:
    with pytest.raises(UserError, match="1x3x4 tokens does not tile the grid 4x4x4"):
        model(block=(1, 3, 4))


# The sequence


@pytest.mark.parametrize(
    ("block", "frames", "first_frame", "hybrid"),
    list(zip(PUBLISHED, (768, 48, 12, 3), (1024, 64, 16, 4), (1280, 95, 83, 260), strict=True)),
)
def test_number_of_steps_is_the_papers(
    block: tuple[int, int, int], frames: int, first_frame: int, hybrid: int
) -> None:
    """Two latent frames given (Kinetics-600), one (UCF-101), and none with the first block token by token."""
    grid = TokenGrid(5, 16, 16)
    net = model(ContextSpec(), grid, block=block, start="none")
    assert net.num_evaluations(grid, prefix_frames=2) == {"transformer": frames}
    assert net.num_evaluations(grid, prefix_frames=1) == {"transformer": first_frame}
    net = model(ContextSpec(), grid, block=block, start="hybrid")
    assert net.num_evaluations(grid) == {"transformer": hybrid}
    net = model(ContextSpec(), grid, block=block, start="block")
    assert net.num_evaluations(grid) == {"transformer": 1280 // math.prod(block)}


@pytest.mark.parametrize(
    ("block", "num"), list(zip(PUBLISHED, (1279, 1264, 1216, 1024), strict=True))
)
def test_logits_are_of_all_tokens_but_those_that_are_given(
    block: tuple[int, int, int], num: int
) -> None:
    tokens = torch.randint(7, (1, 5, 16, 16))
    for start, expected in (("none", num), ("block", 1280), ("hybrid", 1280)):
        net = model(grid=TokenGrid(5, 16, 16), block=block, start=start)
        with torch.no_grad():
            logits = net.head.logits(hidden(net, tokens))
        assert logits.shape == (1, expected, 7)


def test_the_hybrid_sequence_is_the_published_one() -> None:
    """Blocks of 16 behind 8 words: begin-of-video at 8, row 0 at 9 to 24, middle tokens to 39, row 1 from 40."""
    layout = Layout(8, 1280, 16, "hybrid")
    assert layout.token_positions()[[0, 15, 16, 1279]].tolist() == [9, 24, 40, 1303]
    *_, last = layout.steps()
    assert (last, layout.length(last)) == (1264, 1288)
    assert [layout.length(known) for known in (0, 1, 15, 16, 32)] == [9, 10, 24, 40, 56]
    assert [layout.num_predicted(known) for known in (0, 15, 16)] == [1, 1, 16]


@pytest.mark.parametrize("start", ["none", "hybrid"])
def test_a_clip_of_one_block_needs_a_begin_of_video_block(start: str) -> None:
    with pytest.raises(UserError, match="no next block to predict"):
        model(block=(4, 4, 4), start=start)
    assert model(block=(4, 4, 4), start="block").num_evaluations(GRID) == {"transformer": 1}


# Who sees whom


def test_row_sums_of_the_hybrid_mask() -> None:
    """As the released code's: words see words; 8 is begin-of-video, 24 to 39 the first block of NBP."""
    net = model(WORDS, TokenGrid(5, 16, 16), block=(1, 1, 16), start="hybrid")
    mask = net.mask(1288).dense()
    sums = mask.sum(-1)
    assert sums[[0, 7, 8, 23, 24, 39, 40, 55, 56]].tolist() == [8, 8, 9, 24, 40, 40, 56, 56, 72]
    assert mask[:, :8].all()
    assert torch.equal(mask[8:24, 8:24], torch.ones(16, 16).tril().bool())
    assert sums[-1] == 1288


@pytest.mark.parametrize("block", [*PUBLISHED, (1, 4, 4), (5, 4, 4)])
@pytest.mark.parametrize("context", [ContextSpec(), WORDS])
def test_row_sums_without_a_start(context: ContextSpec, block: tuple[int, int, int]) -> None:
    net = model(context, TokenGrid(5, 16, 16), block=block, start="none")
    length, words = math.prod(block), context.num_tokens
    expected = [words] * words
    for end in range(length, 1280, length):
        expected += [words + end] * length
    assert net.mask(len(net.blocks)).dense().sum(-1).tolist() == expected


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    "block", [(1, 1, 1), (1, 1, 4), (1, 2, 4), (1, 4, 4), (1, 2, 2), (2, 2, 2)]
)
def test_a_block_sees_itself_and_all_before_it_only(
    block: tuple[int, int, int], start: str
) -> None:
    net = model(block=block, start=start)
    tokens = torch.randint(7, (1, 4, 4, 4))
    before = hidden(net, tokens)
    layout, length = net.layout, net.block_len
    for known in list(layout.steps())[1:]:  # the last block is never an input
        changed = tokens.flatten(1, 3).clone()
        place = net.order[known - 1]
        changed[:, place] = (changed[:, place] + 1) % 7
        moved = (before - hidden(net, changed.view_as(tokens))).abs().amax(-1)[0] > 1e-7
        first = int(moved.nonzero()[0]) + layout.first_predicted
        assert first == known
        place = first - layout.first_predicted
        assert moved[place : place + layout.num_predicted(known)].all()
        assert layout.num_predicted(known) in (1, length)


@pytest.mark.parametrize("mask_pads", [True, False])
def test_padding_is_seen_only_as_published(mask_pads: bool) -> None:
    net = model(WORDS, block=(1, 1, 4), mask_pads=mask_pads)
    words, tokens = torch.randint(20, (1, 8)), torch.randint(7, (1, 4, 4, 4))
    known = torch.arange(8)[None] < 5
    other = torch.where(known, words, (words + 1) % 20)
    states = [hidden(net, tokens, Condition(text=ids, text_mask=known)) for ids in (words, other)]
    assert torch.equal(states[0], states[1]) == mask_pads


def test_positions_of_the_grid_are_those_of_raster_order() -> None:
    """Blocks of 1x2x2 visit the grid in another order; a table in raster order gives each token the same vector."""
    sequence, grid = (
        model(block=(1, 2, 2), start="none", positions=positions)
        for positions in ("sequence", "grid")
    )
    assert torch.equal(sequence.places(1, 61), sequence.places.positions[1:61])
    assert torch.equal(grid.places(1, 61), grid.places.positions[1 + grid.order[:60]])
    raster = [model(block=(1, 1, 4), start="none", positions=p) for p in ("sequence", "grid")]
    assert all(net.places.in_sequence for net in raster)


def test_rotary_positions_are_relative_ones_of_the_grid() -> None:
    """A token's rotary embedding depends on its (t, h, w), not on the order of the blocks."""
    row, square = (model(block=b, start="none", style="llama") for b in ((1, 1, 4), (1, 2, 2)))
    of_row, of_square = row.places(1, 61), square.places(1, 61)
    assert torch.equal(of_square[0][: 4 * 15], row.places.cos[1:][square.order[:60]])
    assert not torch.equal(of_row[0], of_square[0])


# Losses


def test_next_token_is_the_one_token_block() -> None:
    torch.manual_seed(0)
    one = NextBlock(SPEC, GRID, CLASSES, SIZE, block=(1, 1, 1), dropout=0.0).eval()
    torch.manual_seed(0)
    other = NextToken(SPEC, GRID, CLASSES, SIZE, dropout=0.0).eval()
    tokens, condition = (
        torch.randint(7, (2, 4, 4, 4)),
        Condition(values={"label": torch.tensor([0, 2])}),
    )
    assert torch.equal(one.loss(tokens, condition)["loss"], other.loss(tokens, condition)["loss"])


@pytest.mark.parametrize("style", ["gpt", "llama"])
@pytest.mark.parametrize("start", STARTS)
def test_untrained_loss_is_near_that_of_guessing(start: str, style: str) -> None:
    net = NextBlock(SPEC, GRID, CLASSES, SIZE, block=(1, 1, 4), start=start, style=style)
    loss = net.loss(torch.randint(7, (4, 4, 4, 4)), Condition())["loss"]
    assert abs(loss.item() - math.log(7)) < 0.05


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("block", [(1, 1, 1), (1, 2, 4), (1, 2, 2), (1, 4, 4)])
def test_common_tokens_are_those_after_the_first_frame(
    start: str, block: tuple[int, int, int]
) -> None:
    """`common` is over the same tokens for every block, `per_token` over all predicted tokens."""
    net = model(block=block, start=start)
    tokens = torch.randint(7, (2, 4, 4, 4))
    parts = net.loss(tokens, Condition())
    ordered = tokens.flatten(1, 3)[:, net.order]
    first = net.layout.first_predicted
    losses = net.head.loss(hidden(net, tokens, Condition()), ordered[:, first:])
    raster = torch.full((2, 64), math.nan)
    raster[:, net.order[first:]] = losses
    torch.testing.assert_close(parts["common"], raster[:, 16:].mean())
    torch.testing.assert_close(parts["per_token"], raster.nanmean())
    torch.testing.assert_close(parts["loss"], parts["per_token"])


@pytest.mark.parametrize("start", STARTS)
def test_losses_by_latent_frame(start: str) -> None:
    net = model(block=(2, 2, 2), start=start)
    tokens = torch.randint(7, (2, 4, 4, 4))
    parts = net.loss(tokens, Condition())
    first = net.layout.first_predicted
    ordered = tokens.flatten(1, 3)[:, net.order]
    losses = net.head.loss(hidden(net, tokens, Condition()), ordered[:, first:])
    frames = net.order[first:] // 16
    for i in range(4):
        torch.testing.assert_close(parts[f"frame_{i}"], losses[:, frames == i].mean())


def test_a_corrupted_history_hides_a_share_of_its_tokens_in_training() -> None:
    torch.manual_seed(0)
    net = model(block=(1, 4, 4), history="corrupted")
    tokens, condition = torch.randint(7, (64, 4, 4, 4)), Condition()
    assert net._masked(tokens.flatten(1)) is None
    masked = net.train()._masked(tokens.flatten(1))
    assert masked is not None
    share = masked.float().mean(1)
    assert 0.4 < share.mean() < 0.6
    assert share.min() < 0.1
    assert share.max() > 0.9
    net._masked = lambda tokens: torch.ones_like(tokens, dtype=torch.bool)  # type: ignore[method-assign]
    other = tokens.clone()
    other[:, :3] = (other[:, :3] + 1) % 7
    losses = [net.loss(clips, condition)["frame_3"] for clips in (tokens, other)]
    assert losses[0] == losses[1]  # no frame is seen
    assert "mask_token" not in dict(model(block=(1, 4, 4)).named_parameters())


# What is refused


def test_going_beyond_the_learned_positions_is_refused() -> None:
    with pytest.raises(UserError, match="exceed its training length"):
        model(block=(1, 1, 4)).generate(Request(Condition(), TokenGrid(5, 4, 4)))


@pytest.mark.parametrize("given", [0, 1, 5])
@pytest.mark.parametrize("cls", [NextBlock, NextToken])
def test_longer_clips_are_made_in_windows(cls: type[NextBlock], given: int) -> None:
    """Each window equals a separate generation from its given frames with the next random numbers."""
    torch.manual_seed(0)
    grid = TokenGrid(4, 2, 2)
    options: dict[str, Any] = {} if cls is NextToken else {"block": (1, 1, 2)}
    net = cls(SPEC, grid, ACTIONS, SIZE, **options).eval()
    actions = torch.randint(5, (2, 12, 4))
    condition = Condition(values={"actions": actions})
    own = NextBlockSampling(overlap=2)
    prefix = torch.randint(7, (2, given, 2, 2)) if given else None
    steps: list[int] = []
    request = Request(
        condition,
        grid.with_frames(12),
        prefix=prefix,
        options=own,
        generator=torch.Generator().manual_seed(1),
        on_step=lambda: steps.append(1),
    )
    clip = torch.cat(list(net.stream(request)), dim=1)
    assert clip.shape == (2, 12, 2, 2)
    counted = net.num_evaluations(grid.with_frames(12), prefix_frames=given, options=own)
    assert counted == {"transformer": len(steps)}
    generator = torch.Generator().manual_seed(1)
    expected = torch.zeros(2, 0, 2, 2, dtype=torch.long) if prefix is None else prefix
    start = 0 if given < 4 else given - 2
    while expected.shape[1] < 12:
        stop = min(start + 4, 12)
        part = Request(
            Condition(values={"actions": actions[:, start:stop]}),
            grid.with_frames(stop - start),
            prefix=expected[:, start:] if expected.shape[1] > start else None,
            generator=generator,
        )
        expected = torch.cat([expected[:, :start], net.generate(part)], dim=1)
        start = stop - 2
    assert torch.equal(clip, expected)


def test_an_overlap_is_a_whole_number_of_blocks() -> None:
    request = Request(Condition(), TokenGrid(8, 4, 4), options=NextBlockSampling(overlap=1))
    with pytest.raises(UserError, match="not a whole number of blocks of 2"):
        model(block=(2, 4, 4)).generate(request)


def test_a_prefix_may_end_within_blocks() -> None:
    """Given tokens stay, and blocks after them see them."""
    torch.manual_seed(0)
    net = model(block=(4, 2, 2))
    for parameter in net.parameters():  # else attention hardly tells
        torch.nn.init.normal_(parameter, std=0.5)
    steps: list[int] = []
    drawn = []
    for value in (0, 3):
        request = Request(
            Condition(),
            GRID,
            prefix=torch.full((1, 3, 4, 4), value),
            generator=torch.Generator().manual_seed(0),
            on_step=lambda: steps.append(1),
        )
        drawn.append(net.generate(request))
        assert (drawn[-1][:, :3] == value).all()
    assert len(steps) == 2 * net.num_evaluations(GRID, prefix_frames=3)["transformer"] == 8
    assert torch.equal(drawn[0][:, 3, :2, :2], drawn[1][:, 3, :2, :2])
    assert not torch.equal(drawn[0][:, 3], drawn[1][:, 3])


def test_without_a_start_a_whole_block_must_be_given() -> None:
    net = model(block=(2, 2, 2), start="none")
    with pytest.raises(UserError, match="needs 2 given latent frames, but got 1"):
        net.generate(Request(Condition(), GRID, prefix=torch.zeros(1, 1, 4, 4, dtype=torch.long)))


def test_prefix_must_fit_the_grid_and_leave_something() -> None:
    net = model(block=(1, 1, 4))
    with pytest.raises(UserError, match=r"prefix is \(1, 1, 4, 8\), not \(1, 1, 4, 4\)"):
        net.generate(Request(Condition(), GRID, prefix=torch.zeros(1, 1, 4, 8, dtype=torch.long)))
    with pytest.raises(UserError, match=r"prefix is \(1, 0, 4, 4\), not \(1, 1, 4, 4\)"):
        net.generate(Request(Condition(), GRID, prefix=torch.zeros(1, 0, 4, 4, dtype=torch.long)))
    with pytest.raises(UserError, match="leave nothing to generate in a clip of 4"):
        net.generate(Request(Condition(), GRID, prefix=torch.zeros(1, 4, 4, 4, dtype=torch.long)))


def test_a_prefix_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="ids from 7 to 7; this model knows 0 to 6"):
        model(block=(1, 1, 4)).generate(
            Request(Condition(), GRID, prefix=torch.full((1, 1, 4, 4), 7))
        )
    with pytest.raises(UserError, match="ids from -1 to -1"):
        model(block=(1, 1, 4)).generate(
            Request(Condition(), GRID, prefix=torch.full((1, 1, 4, 4), -1))
        )


def test_without_a_start_frames_must_be_given() -> None:
    assert model(block=(2, 2, 2), start="none").required_frames == 2
    assert model(block=(2, 2, 2)).required_frames == 0
    with pytest.raises(UserError, match="Give first frames"):
        model(block=(1, 1, 4), start="none").generate(Request(Condition(), GRID))


def test_a_table_of_positions_must_be_long_enough() -> None:
    with pytest.raises(UserError, match="table of 65 positions, not 64"):
        model(block=(1, 1, 4), num_positions=64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": (0, 1, 4)}, "block must be at least 1, not 0"),
        ({"block": (1, 1, 5)}, "1x1x5 tokens does not tile"),
        ({"style": "llama", "positions": "grid"}, "have no table"),
        ({"style": "llama", "num_positions": 99}, "have no table"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model(**{"block": (1, 1, 4), **options})


def test_continuous_tokens_in_bf16_train_and_sample() -> None:
    spec = TokenSpec("continuous", 3, (4, 8, 8), True)
    net = NextBlock(spec, GRID, ContextSpec(), SIZE, block=(1, 1, 4)).to(torch.bfloat16)
    net.loss(torch.randn(2, 4, 4, 4, 3), Condition())["loss"].backward()
    drawn = net.eval().generate(Request(Condition(), GRID, batch_size=2))
    assert drawn.shape == (2, 4, 4, 4, 3)
    assert drawn.isfinite().all()


def test_the_loss_over_common_tokens_is_left_out_where_there_are_none() -> None:
    net = model(block=(1, 1, 4))
    assert "common" in net.loss(torch.zeros(1, 2, 4, 4, dtype=torch.long), Condition())
    assert "common" not in net.loss(torch.zeros(1, 1, 4, 4, dtype=torch.long), Condition())


def test_a_mask_made_in_a_validation_serves_training() -> None:
    with torch.inference_mode():
        mask = model(block=(1, 1, 4)).mask(9)
        flex = mask.flex()
    assert not flex.kv_indices.is_inference()


def test_next_token_has_the_options_that_a_block_of_one_token_can_have() -> None:
    own, all_of_them = parameters(NextToken), parameters(NextBlock)
    assert own.keys() == all_of_them.keys() - {"block", "spacing", "positions", "reveal"}
    for name, parameter in own.items():
        assert parameter.default is all_of_them[name].default
        assert parameter.annotation == all_of_them[name].annotation
    with pytest.raises(UserError, match="block"):
        bind(NextToken, {"block": [1, 2, 2]}, what="The paradigm", positional=4)
    options = {"style": "llama", "diffusion": {"shift": 2.0}}
    bound = bind(NextToken, options, what="The paradigm", positional=4)
    assert bound.keywords["diffusion"] == DiffusionOptions(shift=2.0)
