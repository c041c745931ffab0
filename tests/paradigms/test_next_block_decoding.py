"""What decoding does for speed changes nothing: steps of fixed shapes, weights laid out anew, hints that are kept."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
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
from arvid.nn.static_cache import StaticKVCache
from arvid.paradigms.next_block import NextBlock, decoding
from arvid.paradigms.next_block.decoding import NextBlockSampling

GRID = TokenGrid(4, 4, 4)
CONTEXT = ContextSpec(text_dim=8, text_len=5, conditions={"label": 3})
GREEDY = CategoricalSampling(temperature=0.0)


class Replayed:
    """In place of a CUDA graph: runs the function on inputs in fixed places, as often as a capture does."""

    captured = 0

    def __init__(self, function: Callable[..., Tensor], *inputs: Tensor) -> None:
        self.function, self.inputs = function, [x.clone() for x in inputs]
        for _ in range(3):
            function(*self.inputs)
        Replayed.captured += 1

    def __call__(self, *inputs: Tensor) -> Tensor:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        return self.function(*self.inputs)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> type[Replayed]:
    """Steps as on a GPU."""
    monkeypatch.setattr(decoding, "CudaGraph", Replayed)
    monkeypatch.setattr(decoding, "has_graphs", lambda context: True)
    monkeypatch.setattr(Replayed, "captured", 0)
    return Replayed


def model(**options: Any) -> NextBlock:
    """A small one with large random weights, so that what it draws depends on everything."""
    spec, size = TokenSpec("discrete", 70, (4, 8, 8), True), Size(dim=24, depth=2, num_heads=2)
    net = NextBlock(spec, GRID, CONTEXT, size, **options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def condition(batch: int = 2) -> Condition:
    mask = torch.tensor([[True, True, False, False, False], [True] * 5, [True] * 5])
    return Condition(text=torch.randn(batch, 5, 8), text_mask=mask[:batch])


@pytest.mark.parametrize("start", ["none", "block", "hybrid"])
@pytest.mark.parametrize("style", ["gpt", "llama"])
@pytest.mark.parametrize("block", [(1, 1, 1), (1, 2, 2)])
def test_steps_of_fixed_shapes_draw_the_same(
    graphs: type[Replayed],
    monkeypatch: pytest.MonkeyPatch,
    block: tuple[int, int, int],
    style: str,
    start: str,
) -> None:
    net, given, prefix = model(block=block, style=style, start=start), condition(), None
    if start == "none":
        prefix = torch.randint(70, (2, 1, 4, 4))
    options = CategoricalSampling(temperature=0.0, guidance=2.0)
    fixed = net.generate(Request(given, GRID, prefix=prefix, options=options))
    monkeypatch.setattr(decoding, "has_graphs", lambda context: False)
    assert torch.equal(net.generate(Request(given, GRID, prefix=prefix, options=options)), fixed)
    assert graphs.captured == (2 if start == "hybrid" and block != (1, 1, 1) else 1)


def test_captured_steps_serve_the_next_clip_of_the_same_kind(graphs: type[Replayed]) -> None:
    net = model(block=(1, 2, 2))
    first, second = condition(), condition()
    fresh = [copy.deepcopy(net).generate(Request(c, GRID, options=GREEDY)) for c in (first, second)]
    graphs.captured = 0
    found = [net.generate(Request(c, GRID, options=GREEDY)) for c in (first, second)]
    assert graphs.captured == 1
    assert all(torch.equal(a, b) for a, b in zip(found, fresh, strict=True))
    net.generate(Request(condition(3), GRID, options=GREEDY))  # another batch
    assert graphs.captured == 2


def test_captured_steps_do_not_serve_clips_of_another_kind(graphs: type[Replayed]) -> None:
    net, given = model(block=(1, 2, 2)), condition()
    for i in range(2):
        with torch.inference_mode():
            net.generate(Request(given, GRID, options=GREEDY))
        net.generate(Request(given, GRID, options=GREEDY))
        assert graphs.captured == 2 * i + 2


def test_captured_steps_serve_prompts_with_padding_and_without(graphs: type[Replayed]) -> None:
    net, padded = model(block=(1, 2, 2)), condition()
    whole = Condition(text=padded.text, text_mask=None)
    for given in (padded, whole, padded):
        found = net.generate(Request(given, GRID, batch_size=2, options=GREEDY))
        fresh = copy.deepcopy(net).generate(Request(given, GRID, batch_size=2, options=GREEDY))
        assert torch.equal(found, fresh)
    assert graphs.captured == 1 + 3  # one, and one of each copy


def test_steps_read_the_filled_part_of_the_cache(
    graphs: type[Replayed], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, given, reaches = model(block=(1, 2, 2)), condition(), []
    usual = StaticKVCache.attend

    def attend(self: StaticKVCache, *arguments: Any) -> Tensor:
        if self.slots is not None:
            assert self.slots.max() < self.reach
            reaches.append(self.reach)
        return usual(self, *arguments)

    monkeypatch.setattr(StaticKVCache, "attend", attend)
    whole = net.generate(Request(given, GRID, options=GREEDY))
    assert set(reaches) == {len(net.blocks)}
    monkeypatch.setattr(decoding, "SMALLEST_PART", 1)
    decoding.IDLE.clear()
    reaches.clear()
    assert torch.equal(net.generate(Request(given, GRID, options=GREEDY)), whole)
    part = -(-len(net.blocks) // decoding.NUM_REACHES)
    assert set(reaches) == {part, 2 * part, 3 * part, len(net.blocks)}


def test_clips_at_once_do_not_share_a_cache(graphs: type[Replayed]) -> None:
    net = model(block=(1, 2, 2))
    given = [condition(), condition()]
    expected = [net.generate(Request(c, GRID, options=GREEDY)) for c in given]
    streams = [net.stream(Request(c, GRID, options=GREEDY)) for c in given]
    pieces = list(zip(*streams, strict=True))  # in turns, frame by frame
    found = [torch.cat([piece[i] for piece in pieces], dim=1) for i in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_captured_steps_go_with_their_network(graphs: type[Replayed]) -> None:
    net = model(block=(1, 2, 2))
    net.generate(Request(condition(), GRID, options=GREEDY))
    assert net in decoding.IDLE
    known = len(decoding.IDLE)
    del net
    gc.collect()
    assert len(decoding.IDLE) == known - 1


def test_new_weights_are_seen(graphs: type[Replayed]) -> None:
    net, given = model(block=(1, 2, 2)), condition()
    net.generate(Request(given, GRID, options=GREEDY))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    found = net.generate(Request(given, GRID, options=GREEDY))
    assert torch.equal(found, copy.deepcopy(net).generate(Request(given, GRID, options=GREEDY)))


@pytest.mark.parametrize("block", [(1, 4, 4), (1, 1, 4)])
def test_rounds_with_a_cache_and_without_draw_the_same(block: tuple[int, int, int]) -> None:
    net, given = model(block=block, reveal=True), condition()
    clips = [
        net.generate(
            Request(
                given,
                GRID,
                options=NextBlock.options_for("discrete")().replace(
                    top_k=30, rounds=3, use_cache=use_cache
                ),
                generator=torch.Generator().manual_seed(0),
            )
        )
        for use_cache in (True, False)
    ]
    assert torch.equal(*clips)


def test_each_round_keeps_what_the_last_one_kept() -> None:
    """More stays from round to round, and the block that comes out holds it."""
    net, shown = model(block=(1, 4, 4), reveal=True), []
    usual = net.hint

    def hint(tokens: Tensor, revealed: Tensor) -> Tensor:
        shown.append((tokens.clone(), revealed.clone()))
        return usual(tokens, revealed)

    net.hint = hint  # type: ignore[method-assign]
    drawn = net.generate(Request(condition(), GRID, options=NextBlockSampling(rounds=4)))
    ordered = drawn.flatten(1, 3)[:, net.order]
    assert len(shown) == 3 * GRID.t  # after the last round nothing is left to show
    for i, (tokens, revealed) in enumerate(shown):
        assert (revealed.sum(1) == 4 * (i % 3 + 1)).all()
        block = ordered[:, i // 3 * 16 :][:, :16]
        assert torch.equal(tokens[revealed], block[revealed])


def test_steps_are_not_compiled_on_a_cpu() -> None:
    net = model(block=(1, 2, 2))
    with pytest.raises(UserError, match="leave out compiled"):
        net.generate(Request(condition(), GRID, options=NextBlockSampling(compiled=True)))
