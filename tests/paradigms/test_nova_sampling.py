"""NOVA draws clips: caches, continuations, windows, streaming, guidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from arvid.contracts import (
    Condition,
    ContextSpec,
    Request,
    SamplingOptions,
    Size,
    TokenGrid,
    TokenSpec,
    UserError,
)
from arvid.nn import cuda_graph
from arvid.paradigms.nova import NOVA, paradigm, sampling
from arvid.paradigms.nova.context import DEFAULT_MOTION, PublishedContext
from arvid.paradigms.nova.sampling import NovaSampling

SPEC = TokenSpec("continuous", 4, (4, 8, 8), True)
GRID = TokenGrid(4, 4, 8)
SIZE = Size(dim=32, depth=6, num_heads=2, head_dim=32, head_depth=1)
CONTEXT = ContextSpec(text_dim=8, text_len=3, conditions={"motion": 1})
OPTIONS = NOVA.options_for("continuous")().replace(diffusion_steps=3, guidance=2.0)


def model(spec: TokenSpec = SPEC, **options: object) -> NOVA:
    return NOVA(spec, GRID, CONTEXT, SIZE, **{"num_sets": 3, **options}).eval()  # type: ignore[arg-type]


def condition(batch: int = 2) -> Condition:
    mask = torch.tensor([[True, False, False], [True, True, True]])[:batch]
    return Condition(
        text=torch.randn(batch, 3, 8), text_mask=mask, values={"motion": torch.full((batch,), 3.0)}
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Replayed:
    """In place of a CUDA graph: runs the function on inputs in fixed places."""

    captured = 0

    def __init__(
        self, function: Callable[..., Tensor], *inputs: Tensor, memory: cuda_graph.GraphMemory
    ) -> None:
        self.function, self.inputs = function, memory.buffers(inputs)
        Replayed.captured += 1

    def __call__(self, *inputs: Tensor) -> Tensor:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        return self.function(*self.inputs)


@pytest.mark.parametrize("tam", [True, False])
def test_captured_sets_draw_what_others_do(tam: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each set is captured once, for all frames and clips. Its inputs lie in buffers that all sets share."""
    net, given = model(tam=tam), condition()
    requests = [Request(given, GRID, options=OPTIONS, generator=seeded(i)) for i in range(2)]
    plain = [net.generate(request) for request in requests]
    graphs = cuda_graph.graphs_of
    monkeypatch.setattr(
        sampling.ClipSampler, "_graphs", lambda sampler: graphs(sampler.model.spatial)
    )
    monkeypatch.setattr(cuda_graph, "CudaGraph", Replayed)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(Replayed, "captured", 0)
    for i, request in enumerate(requests):
        request.generator.manual_seed(i)  # type: ignore[union-attr]
        assert torch.equal(net.generate(request), plain[i])
    assert Replayed.captured == 3


def random_frames(net: NOVA, num: int) -> Tensor:
    shape = (2, num, 4, 8)
    if net.spec.type == "discrete":
        return torch.randint(net.spec.size, shape)
    return torch.randn(*shape, net.spec.size)


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("given", [1, 2, 3])
def test_the_cached_temporal_pass_is_the_masked_one(passes: int, given: int) -> None:
    """Given frames go in at once, later ones one by one."""
    net = model()
    context = torch.randn(passes, 2, 4, 32)
    frames = random_frames(net, 3)
    masked = net.temporal(context, frames, 4)
    caches = net.temporal.layers.new_caches(4 + 4 * net.temporal.num_tokens)
    filled = net.temporal(context, frames[:, :given], 4, caches)
    torch.testing.assert_close(filled, masked[:, :, : given + 1], rtol=1e-5, atol=1e-5)
    for i in range(given + 1, 4):
        step = net.temporal.step(passes, frames[:, i - 1], i, 4, caches)
        torch.testing.assert_close(step, masked[:, :, i], rtol=1e-5, atol=1e-5)


class OneOrder:
    """Stands for `random_orders` of a generation whose orders are known."""

    def __init__(self, orders: list[Tensor]) -> None:
        self.orders = iter(orders)

    def __call__(self, *_: object) -> Tensor:
        return next(self.orders)


@pytest.mark.parametrize("type_", ["continuous", "discrete"])
@pytest.mark.parametrize("order", ["video", "frame"])
@pytest.mark.parametrize("given", [1, 2, 3])
def test_continuation_is_straight_generation_with_the_same_noise(
    type_: str, order: str, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = model(TokenSpec(type_, 4, (4, 8, 8), True), order=order)  # type: ignore[arg-type]
    options = OPTIONS if type_ == "continuous" else SamplingOptions(guidance=2.0)
    cond, generator = condition(), seeded()
    orders = [torch.stack([torch.randperm(net.num_positions) for _ in range(2)]) for _ in range(4)]
    monkeypatch.setattr(paradigm, "random_orders", OneOrder(orders))
    stream = net.stream(Request(cond, GRID, options=options, generator=generator))
    frames = [next(stream) for _ in range(given)]
    state = generator.get_state()
    straight = torch.cat([*frames, *stream], dim=1)
    monkeypatch.setattr(
        paradigm, "random_orders", OneOrder(orders if order == "video" else orders[given:])
    )
    generator.set_state(state)
    prefix = straight[:, :given]
    again = net.generate(Request(cond, GRID, prefix=prefix, options=options, generator=generator))
    torch.testing.assert_close(again, straight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tam", [True, False])
def test_streaming_gives_what_generating_gives(tam: bool) -> None:
    net, cond = model(tam=tam), condition()
    prefix = random_frames(net, 1)
    whole = net.generate(Request(cond, GRID, prefix=prefix, options=OPTIONS, generator=seeded()))
    pieces = list(
        net.stream(Request(cond, GRID, prefix=prefix, options=OPTIONS, generator=seeded()))
    )
    assert [len(piece[0]) for piece in pieces] == ([1, 1, 1, 1] if tam else [1, 3])
    assert torch.equal(torch.cat(pieces, dim=1), whole)


def test_frames_leave_before_later_ones_are_begun() -> None:
    net, steps = model(), []
    num = net.num_evaluations(GRID)["spatial layers"]
    stream = net.stream(
        Request(condition(), GRID, options=OPTIONS, on_step=lambda: steps.append(1))
    )
    next(stream)
    assert len(steps) == num // 4


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The calls of the temporal layers: frames that went in, and the length their times are stretched over."""
    from arvid.paradigms.nova.temporal import TemporalLayers

    calls: list[tuple[int, int]] = []
    forward, step = TemporalLayers.forward, TemporalLayers.step

    def spied_forward(
        self: TemporalLayers, context: Tensor, frames: Tensor | None, n: int, *rest: object
    ) -> Tensor:
        calls.append((0 if frames is None else frames.shape[1], n))
        return forward(self, context, frames, n, *rest)  # type: ignore[arg-type]

    def spied_step(
        self: TemporalLayers, passes: int, frame: Tensor, i: int, n: int, *rest: object
    ) -> Tensor:
        calls.append((i, n))
        return step(self, passes, frame, i, n, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TemporalLayers, "forward", spied_forward)
    monkeypatch.setattr(TemporalLayers, "step", spied_step)
    return calls


def test_longer_clips_are_stretched_as_released(windows: list[tuple[int, int]]) -> None:
    tokens = model().generate(Request(condition(), TokenGrid(6, 4, 8), options=OPTIONS))
    assert tokens.shape[1] == 6
    assert windows == [(i, 6) for i in range(6)]


def test_with_an_overlap_a_window_moves_along(windows: list[tuple[int, int]]) -> None:
    """Trained on 4: after 4 frames text and BOV move in front of the last 2."""
    options = OPTIONS.replace(overlap=2)
    net, cond = model(), condition()
    tokens = net.generate(Request(cond, TokenGrid(9, 4, 8), options=options, generator=seeded()))
    assert tokens.shape[1] == 9
    assert windows == [(n, 4) for n in (0, 1, 2, 3, 2, 3, 2, 3, 2)]
    windows.clear()
    net.generate(Request(cond, GRID, options=options))  # not longer than trained
    assert windows == [(n, 4) for n in range(4)]
    windows.clear()
    net.generate(Request(cond, TokenGrid(9, 4, 8), prefix=tokens[:, :6], options=options))
    assert windows == [(2, 4), (3, 4), (2, 4)]


def test_a_window_sees_nothing_from_before_it() -> None:
    net, cond = model(order="frame"), condition()
    options = OPTIONS.replace(overlap=1)
    prefix = random_frames(net, 4)
    other = torch.cat([random_frames(net, 3), prefix[:, 3:]], dim=1)
    grid = TokenGrid(5, 4, 8)
    drawn = [
        net.generate(Request(cond, grid, prefix=p, options=options, generator=seeded()))[:, 4]
        for p in (prefix, other)
    ]
    assert torch.equal(*drawn)


ACTIONS = ContextSpec(frame_conditions={"actions": 5}, frames_per_latent=4)


@pytest.mark.parametrize("overlap", [None, 1])
def test_actions_hold_for_their_frames_in_clips_longer_than_trained(overlap: int | None) -> None:
    """Times of a window begin anew, and its actions do not; with the cache and without."""
    net = NOVA(SPEC, GRID, ACTIONS, SIZE, num_sets=3).eval()
    ids, grid = torch.randint(5, (2, 9, 4)), GRID.with_frames(9)
    clips = []
    for changed, use_cache in ((9, True), (9, False), (6, True)):
        given = ids.clone()
        given[:, changed:] = (given[:, changed:] + 1) % 5
        options = OPTIONS.replace(overlap=overlap, use_cache=use_cache)
        request = Request(
            Condition(values={"actions": given}), grid, options=options, generator=seeded()
        )
        clips.append(net.generate(request))
    torch.testing.assert_close(clips[0], clips[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(clips[0][:, :6], clips[2][:, :6])
    assert not torch.allclose(clips[0][:, 6], clips[2][:, 6])


@pytest.mark.parametrize("options", [{"image_guidance": 1.5}, {}])
def test_guidance_leads_away_from_unknown_actions(options: dict[str, float]) -> None:
    net = NOVA(SPEC, GRID, ACTIONS, SIZE, num_sets=3).eval()
    given = Condition(values={"actions": torch.randint(5, (2, 4, 4))})
    clips = [
        net.generate(
            Request(
                given,
                GRID,
                options=OPTIONS.replace(guidance=guidance, **options),
                generator=seeded(),
            )
        )
        for guidance in (1.0, 3.0)
    ]
    assert not torch.allclose(*clips)


def test_without_temporal_autoregression_actions_are_seen_by_all_frames() -> None:
    net = NOVA(SPEC, GRID, ACTIONS, SIZE, num_sets=3, tam=False).eval()
    ids = torch.randint(5, (2, 4, 4))
    other = ids.clone()
    other[:, -1] = (other[:, -1] + 1) % 5
    clips = [
        net.generate(
            Request(Condition(values={"actions": a}), GRID, options=OPTIONS, generator=seeded())
        )
        for a in (ids, other)
    ]
    assert not torch.allclose(clips[0][:, 0], clips[1][:, 0])


def test_an_overlap_as_long_as_the_window_is_refused() -> None:
    options = OPTIONS.replace(overlap=4)
    with pytest.raises(UserError, match="window of 4"):
        model().generate(Request(condition(), TokenGrid(6, 4, 8), options=options))


def test_sets_may_be_others_than_trained() -> None:
    net, steps = model(), []
    options = OPTIONS.replace(num_sets=1)
    net.generate(Request(condition(), GRID, options=options, on_step=lambda: steps.append(1)))
    assert len(steps) == net.num_evaluations(GRID, options=options)["spatial layers"] == 4


def test_a_guidance_ramp_ends_at_the_guidance() -> None:
    seen: list[float] = []
    net = model()
    head = net.head.sample

    def spied(hidden: Tensor, *, options: SamplingOptions, **kwargs: object) -> Tensor:
        seen.append(options.guidance)
        return head(hidden, options=options, **kwargs)  # type: ignore[arg-type]

    net.head.sample = spied  # type: ignore[method-assign, assignment]
    options = OPTIONS.replace(guidance=4.0, guidance_min=1.0)
    net.generate(Request(condition(), TokenGrid(1, 4, 8), options=options))
    assert seen == pytest.approx([2.0, 3.0, 4.0])


@pytest.mark.parametrize("process", ["ddpm", "flow"])
@pytest.mark.parametrize("whole_noise", [True, False])
@pytest.mark.parametrize("nulls", ["learned", "table"])
def test_every_kind_of_guidance_draws(process: str, whole_noise: bool, nulls: str) -> None:
    from arvid.nn.heads import DiffusionOptions

    net = model(nulls=nulls, diffusion=DiffusionOptions(process=process))  # type: ignore[arg-type]
    plain, cond = OPTIONS.replace(guidance=1.0, whole_noise=whole_noise), condition()
    drawn = [
        net.generate(
            Request(
                cond,
                TokenGrid(2, 4, 8),
                options=plain.replace(**changes),
                generator=seeded(),
            )
        )
        for changes in (
            {},
            {"guidance": 30.0},
            {"guidance": 30.0, "guidance_trunc": 500.0},
            {"guidance": 30.0, "guidance_renorm": 0.0},
            {"guidance": 30.0, "image_guidance": 1.5},
        )
    ]
    for i, tokens in enumerate(drawn):
        assert torch.isfinite(tokens).all()
        assert not any(torch.equal(tokens, other) for other in drawn[:i])


def test_image_guidance_shows_its_second_pass_no_frames() -> None:
    net = model()
    context = torch.randn(3, 2, 4, 32)
    frames = random_frames(net, 2)
    before = net.temporal(context, frames, 4)
    after = net.temporal(context, frames + 1, 4)
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[2, :, 1:], after[2, :, 1:])


def test_image_guidance_of_ids_is_refused() -> None:
    net = model(TokenSpec("discrete", 4, (4, 8, 8), True))
    with pytest.raises(UserError, match="Image guidance"):
        net.generate(Request(condition(), GRID, options=NovaSampling(image_guidance=1.0)))


def test_guidance_leads_away_from_the_negative_prompt() -> None:
    net, cond = model(), condition()
    away = dataclasses.replace(
        cond, negative_text=torch.randn(2, 3, 8), negative_text_mask=torch.ones(2, 3).bool()
    )
    grid = TokenGrid(1, 4, 8)
    plain, led = (
        net.generate(Request(c, grid, options=OPTIONS, generator=seeded())) for c in (cond, away)
    )
    assert not torch.allclose(plain, led)
    same = dataclasses.replace(cond, negative_text=cond.text, negative_text_mask=cond.text_mask)
    same.values = {}
    unguided = OPTIONS.replace(guidance=1.0)
    net.context.null.data.zero_()
    drawn = net.generate(
        Request(dataclasses.replace(same), grid, options=OPTIONS, generator=seeded())
    )
    alone = net.generate(
        Request(dataclasses.replace(cond, values={}), grid, options=unguided, generator=seeded())
    )
    torch.testing.assert_close(drawn, alone, rtol=1e-4, atol=1e-4)


def test_the_published_context_fills_from_its_table() -> None:
    """Facts §1.4 and §1.5: table rows pad and stand for no prompt; motion 5 and fps 12 are never dropped."""
    context = PublishedContext(CONTEXT, 16)
    cond = condition()
    tokens = context(cond, 2)
    assert tokens.shape == (2, 5, 16)
    table = context.text(context.table[:3])
    torch.testing.assert_close(tokens[0, 1:3], table[1:])
    assert not torch.allclose(tokens[1, :3], table)
    null = context.negative(cond, 2)
    torch.testing.assert_close(null[0, :3], table)
    torch.testing.assert_close(null[:, 3:], tokens[:, 3:])
    dropped = context(cond, 2, drop=torch.tensor([False, True]))
    torch.testing.assert_close(dropped[1, :3], table)
    torch.testing.assert_close(dropped[1, 3:], tokens[1, 3:])
    unknown = Condition(values={"motion": torch.tensor([float("nan"), DEFAULT_MOTION])})
    torch.testing.assert_close(*context(unknown, 2)[:, 3])
    assert not context.table.requires_grad


def test_the_published_context_of_labels_has_a_null_row() -> None:
    context = PublishedContext(ContextSpec(conditions={"label": 3}), 16)
    tokens = context(
        Condition(values={"label": torch.tensor([0, -1])}), 2, drop=torch.tensor([False, False])
    )
    null = context(Condition(), 1)
    torch.testing.assert_close(tokens[1], null[0])
    assert not torch.allclose(tokens[0], null[0])
    torch.testing.assert_close(
        context(Condition(values={"label": torch.tensor([0, 1])}), 2, torch.tensor([True, True])),
        null.expand(2, -1, -1),
    )


@pytest.mark.parametrize("guidance", [1.0, 0.5, 0.0])
def test_the_published_code_does_not_guide_at_one_or_less(guidance: float) -> None:
    net, cond, grid = model(), condition(), TokenGrid(2, 4, 8)

    def drawn(**options: float) -> Tensor:
        given = OPTIONS.replace(as_published=True, **options)
        return net.generate(Request(cond, grid, options=given, generator=seeded()))

    assert torch.equal(drawn(guidance=guidance), drawn(guidance=1.0))
    assert not torch.equal(drawn(guidance=guidance), drawn(guidance=1.5))


def test_the_published_code_takes_a_ramp_from_zero_for_none() -> None:
    net, cond, grid = model(), condition(), TokenGrid(1, 4, 8)

    def drawn(**options: float | bool | None) -> Tensor:
        given = OPTIONS.replace(guidance=3.0, **options)
        return net.generate(Request(cond, grid, options=given, generator=seeded()))

    constant = drawn(as_published=True)
    assert torch.equal(drawn(as_published=True, guidance_min=0.0), constant)
    assert not torch.equal(drawn(as_published=True, guidance_min=1.5), constant)
    assert not torch.equal(drawn(guidance_min=0.0), drawn())


@pytest.mark.parametrize("as_published", [True, False])
def test_random_numbers_have_the_published_models_precision(
    as_published: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    types: list[torch.dtype] = []
    for name in ("rand", "randn"):
        draw = getattr(torch, name)

        def spied(*args: object, draw: object = draw, **kwargs: object) -> Tensor:
            out: Tensor = draw(*args, **kwargs)  # type: ignore[operator]
            types.append(out.dtype)
            return out

        monkeypatch.setattr(torch, name, spied)
    net, cond = model(nulls="table").bfloat16(), condition()
    types.clear()
    options = OPTIONS.replace(as_published=as_published, whole_noise=True)
    out = net.generate(Request(cond, TokenGrid(1, 4, 8), options=options, generator=seeded()))
    assert torch.isfinite(out).all()
    assert len(types) == 1 + 3 * (1 + 3)  # an order; for each set, noise and that of each step
    assert set(types) == {torch.bfloat16 if as_published else torch.float32}
