"""Decoding of next-block prediction: the cache, streaming, guidance and rounds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from arvid.contracts import (
    Condition,
    ContextSpec,
    Request,
    Size,
    TokenGrid,
    TokenSpec,
    UserError,
)
from arvid.nn.heads.categorical import CategoricalSampling
from arvid.nn.heads.diffusion_process import DiffusionSampling
from arvid.paradigms.next_block import NextBlock
from arvid.paradigms.next_block.decoding import Decoder, NextBlockSampling

BLOCKS = [(1, 1, 1), (1, 1, 16), (1, 4, 16), (1, 16, 16), (1, 4, 4), (2, 4, 4)]
"""The published ones and two that are no raster runs."""
GRID = TokenGrid(4, 16, 16)
SMALL = TokenGrid(4, 4, 4)
CONTEXT = ContextSpec(text_dim=8, text_len=5, conditions={"label": 3})
SPEC = TokenSpec("discrete", 7, (4, 8, 8), True)
GREEDY = CategoricalSampling(temperature=0.0)


def model(grid: TokenGrid, context: ContextSpec = CONTEXT, **options: Any) -> NextBlock:
    """A small one with large random weights, so that what it draws depends on everything."""
    size = Size(dim=24, depth=2, num_heads=2)
    net = NextBlock(SPEC, grid, context, size, **options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def condition() -> Condition:
    return Condition(
        text=torch.randn(2, 5, 8),
        text_mask=torch.tensor([[True, True, False, False, False], [True] * 5]),
        values={"label": torch.tensor([0, 2])},
    )


@pytest.mark.parametrize("start", ["none", "block", "hybrid"])
@pytest.mark.parametrize("block", BLOCKS)
def test_cached_states_are_those_of_the_whole_sequence(
    block: tuple[int, int, int], start: str
) -> None:
    """The last two of four latent frames, after a prefix of two; for hybrids the whole first block too."""
    style = "llama" if block == (2, 4, 4) else "gpt"
    net = model(GRID, block=block, start=start, style=style)
    given, tokens, layout = condition(), torch.randint(7, (2, GRID.num_tokens)), net.layout
    context, padding = net.context(given, 2), net.padding(given.text_mask)
    with torch.no_grad():
        whole = net.hidden_states(context, padding, tokens, layout)
        begins = [2 * 256]
        if start == "hybrid" and net.block_len > 1:
            begins.append(0)
        for begin in begins:
            decoder = Decoder(net, context, padding, layout, NextBlockSampling())
            for known in list(layout.steps(begin))[:64]:
                states = decoder.hidden(tokens, known)
                place = known - layout.first_predicted
                expected = whole[:, place : place + layout.num_predicted(known)]
                torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", ["none", "block", "hybrid"])
@pytest.mark.parametrize("block", [(1, 1, 1), (1, 1, 4), (1, 4, 4), (1, 2, 2), (2, 2, 2)])
def test_greedy_clips_are_the_likeliest_tokens_of_their_own_states(
    block: tuple[int, int, int], start: str
) -> None:
    """Teacher-forced on its own result the network predicts the result; this goes through no decoding code."""
    net = model(SMALL, block=block, start=start)
    given = condition()
    prefix = torch.randint(7, (2, 2, 4, 4))
    drawn = net.generate(Request(given, SMALL, prefix=prefix, options=GREEDY))
    assert torch.equal(drawn[:, :2], prefix)
    ordered = drawn.flatten(1, 3)[:, net.order]
    with torch.no_grad():
        states = net.hidden_states(
            net.context(given, 2), net.padding(given.text_mask), ordered, net.layout
        )
        likeliest = net.head.logits(states).argmax(-1)
    first = net.layout.first_predicted
    assert torch.equal(likeliest[:, 32 - first :], ordered[:, 32:])
    assert len(ordered.unique()) > 2


def stream(net: NextBlock, **options: Any) -> list[tuple[int, Tensor]]:
    """Pieces and how many steps had been taken when each came."""
    steps: list[int] = []
    pieces = net.stream(Request(condition(), SMALL, on_step=lambda: steps.append(1), **options))
    return [(len(steps), piece) for piece in pieces]


def test_frames_come_out_while_later_ones_are_not_drawn_yet() -> None:
    pieces = stream(model(SMALL, block=(1, 1, 4)))
    assert [steps for steps, _ in pieces] == [4, 8, 12, 16]
    assert [piece.shape for _, piece in pieces] == [(2, 1, 4, 4)] * 4
    pieces = stream(model(SMALL, block=(2, 2, 2)), prefix=torch.randint(7, (2, 2, 4, 4)))
    assert [steps for steps, _ in pieces] == [0, 4]
    assert [piece.shape for _, piece in pieces] == [(2, 2, 4, 4)] * 2


def test_streamed_frames_are_the_clip() -> None:
    net = model(SMALL, block=(1, 2, 2))
    given = condition()
    clips = [
        run(
            Request(
                given,
                SMALL,
                options=CategoricalSampling(top_p=0.9),
                generator=torch.Generator(),
            )
        )
        for run in (net.generate, net.stream)
    ]
    assert torch.equal(clips[0], torch.cat(list(clips[1]), dim=1))


def test_guidance_leads_away_from_the_null_condition() -> None:
    """Greedy at scale 3 is the likeliest of null + 3 · (given - null), by the whole sequence without a cache."""
    net = model(SMALL, block=(1, 1, 4))
    given = condition()
    options = CategoricalSampling(temperature=0.0, guidance=3.0)
    drawn = net.generate(Request(given, SMALL, options=options)).flatten(1, 3)
    with torch.no_grad():
        logits = [
            net.head.logits(net.hidden_states(net.context(c, 2), net.padding(m), drawn, net.layout))
            for c, m in ((given, given.text_mask), (Condition(), None))
        ]
    assert torch.equal((logits[1] + 3 * (logits[0] - logits[1])).argmax(-1), drawn)
    assert not torch.equal(drawn, net.generate(Request(given, SMALL, options=GREEDY)).flatten(1, 3))


def test_training_drops_conditions_for_guidance() -> None:
    """With every condition dropped it does not matter, and the null one gets the gradient."""
    net = model(SMALL, block=(1, 1, 4), dropout=0.0, condition_dropout=1.0).train()
    tokens = torch.randint(7, (2, 4, 4, 4))
    losses = [net.loss(tokens, c)["loss"] for c in (condition(), Condition())]
    torch.testing.assert_close(losses[0], losses[1])
    losses[0].backward()
    assert (net.context.null.grad.abs().sum(-1) > 0).all()
    assert net.context.label.weight.grad is None or not net.context.label.weight.grad.any()


def test_rounds_fill_a_block_bit_by_bit() -> None:
    net = model(SMALL, block=(1, 4, 4), reveal=True)
    options = NextBlockSampling(rounds=4)
    steps: list[int] = []
    drawn = net.generate(
        Request(condition(), SMALL, options=options, on_step=lambda: steps.append(1))
    )
    assert len(steps) == net.num_evaluations(SMALL, options=options)["transformer"] == 16
    assert drawn.max() < 7
    hybrid = model(SMALL, block=(1, 1, 4), start="hybrid", reveal=True)
    assert hybrid.num_evaluations(SMALL, options=options) == {"transformer": 4 + 15 * 4}


def test_rounds_need_a_model_that_was_trained_for_them() -> None:
    with pytest.raises(UserError, match="reveal"):
        model(SMALL, block=(1, 4, 4)).generate(
            Request(condition(), SMALL, options=NextBlockSampling(rounds=2))
        )
    with pytest.raises(UserError, match="several discrete tokens"):
        model(SMALL, block=(1, 1, 1), reveal=True)


def test_temperature_goes_evenly_to_that_of_the_last_block() -> None:
    """From 0, where blocks are the likeliest, to so much that ids are all as likely."""
    net = model(SMALL, block=(1, 4, 4))
    given = condition()
    options = NextBlock.options_for("discrete")().replace(temperature=0.0, last_temperature=1e6)
    drawn = [
        net.generate(
            Request(given, SMALL, options=options, generator=torch.Generator().manual_seed(s))
        )
        for s in (0, 1)
    ]
    greedy = net.generate(Request(given, SMALL, options=GREEDY))
    assert all(torch.equal(d[:, :1], greedy[:, :1]) for d in drawn)
    assert not torch.equal(drawn[0][:, 3], drawn[1][:, 3])


def test_continuous_tokens_take_the_same_way() -> None:
    spec = TokenSpec("continuous", 3, (4, 8, 8), True)
    size = Size(dim=24, depth=2, num_heads=2, head_dim=16, head_depth=1)
    for start in ("none", "block", "hybrid"):
        net = NextBlock(spec, SMALL, CONTEXT, size, block=(1, 2, 2), start=start).eval()
        tokens, given = torch.randn(2, 4, 4, 4, 3), condition()
        assert torch.isfinite(net.loss(tokens, given)["common"])
        options = DiffusionSampling(diffusion_steps=2, guidance=2.0)
        drawn = net.generate(Request(given, SMALL, prefix=tokens[:, :1], options=options))
        assert drawn.shape == tokens.shape
        assert torch.equal(drawn[:, :1], tokens[:, :1])
