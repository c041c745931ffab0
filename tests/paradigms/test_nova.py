"""NOVA: masks, sets, indicators, and what its parts may see."""

from __future__ import annotations

import copy
import math
from dataclasses import astuple

import pytest
import torch

from arvid.contracts import (
    Condition,
    ContextSpec,
    Request,
    Size,
    TokenGrid,
    TokenSpec,
    TokenType,
    UserError,
)
from arvid.nn.heads import DiffusionOptions
from arvid.nn.heads.diffusion_process import DiffusionSampling, Process
from arvid.nn.masking import draw_mask_ratio, random_orders
from arvid.paradigms.nova import NOVA
from arvid.paradigms.nova.paradigm import Part
from arvid.paradigms.nova.sampling import NovaSampling, Order, same_order, set_sizes
from arvid.paradigms.nova.temporal import ScalingShift

SPEC = TokenSpec("continuous", 4, (4, 8, 8), True)
GRID = TokenGrid(3, 4, 8)
SIZE = Size(dim=32, depth=6, num_heads=2, head_dim=32, head_depth=1)


def model(**options: object) -> NOVA:
    context = ContextSpec(conditions={"label": 3})
    return NOVA(SPEC, GRID, context, SIZE, **{"num_sets": 4, **options}).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("num_tokens", "num_sets", "real_steps"),
    [
        (1440, 64, 63),
        (1440, 128, 126),
        (1024, 64, 63),
        (1024, 128, 125),
        (4096, 64, 64),
        (4096, 128, 127),
    ],
)
def test_sets_are_those_of_the_released_code(
    num_tokens: int, num_sets: int, real_steps: int
) -> None:
    sizes = set_sizes(num_tokens, num_sets)
    assert sum(sizes) == num_tokens
    assert len(sizes) == real_steps


def test_first_and_last_sets_are_those_of_the_released_code() -> None:
    sizes = set_sizes(1440, 64)
    assert sizes[-3:] == [35, 36, 35]


def test_mask_ratios_follow_the_truncated_normal() -> None:
    generator = torch.Generator().manual_seed(0)
    ratios = torch.tensor([draw_mask_ratio(generator) for _ in range(20_000)])
    assert ratios.min() >= 0.7
    assert ratios.max() <= 1
    z = (0.7 - 1) / 0.25
    density = math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    mass = 0.5 * math.erf(-z / math.sqrt(2))
    expected = 1 - 0.25 * (1 / math.sqrt(2 * math.pi) - density) / mass
    assert ratios.mean().item() == pytest.approx(expected, abs=2e-3)


def test_orders_are_permutations() -> None:
    orders = random_orders(5, 16, torch.device("cpu"))
    assert torch.equal(orders.sort(1).values, torch.arange(16).expand(5, -1))


def test_the_first_frame_is_its_own_indicator_and_later_ones_are_scaled_and_shifted() -> None:
    layer = ScalingShift(8, rank=3)
    anchor, current = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    scale, shift = layer.up(layer.down(torch.nn.functional.silu(current))).chunk(2, -1)
    torch.testing.assert_close(layer(anchor, current), anchor * (1 + scale) + shift)


@pytest.mark.parametrize("scale_shift", ["off", "full", 3])
def test_indicators_see_earlier_frames_only(scale_shift: object) -> None:
    net = model(scale_shift=scale_shift)
    context = net.context(Condition(values={"label": torch.tensor([1])}), 1)[None]
    frames = torch.randn(1, 2, 4, 8, 4)
    before = net.temporal.indicators(net.temporal(context, frames, 3))
    changed = frames.clone()
    changed[:, 1] += 1
    after = net.temporal.indicators(net.temporal(context, changed, 3))
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.allclose(before[:, :, 2], after[:, :, 2])


def test_visible_tokens_may_come_in_any_order() -> None:
    net = model()
    indicator = torch.randn(1, 2, net.temporal.num_tokens, 32)
    tokens, visible = torch.randn(2, 2, 16), torch.tensor([[0, 5], [7, 2]])
    wanted = torch.tensor([[1, 2, 3], [0, 1, 5]])
    before = net.spatial(indicator, tokens, visible, wanted)
    after = net.spatial(indicator, tokens.flip(1), visible.flip(1), wanted)
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("norm", ["pre", "branch", "post"])
def test_wanted_tokens_alone_are_as_among_all(norm: str) -> None:
    """The last block computes only those that are predicted."""
    net = model(norm=norm)
    indicator = torch.randn(2, 1, net.temporal.num_tokens, 32)
    tokens, visible = torch.randn(1, 2, 16), torch.tensor([[0, 5]])
    everything = net.spatial(indicator, tokens, visible, torch.arange(8)[None])
    some = net.spatial(indicator, tokens, visible, torch.tensor([[6, 1]]))
    torch.testing.assert_close(some, everything[:, :, [6, 1]])


def test_no_visible_token_is_legal() -> None:
    net = model()
    indicator = torch.randn(1, 2, net.temporal.num_tokens, 32)
    nothing = torch.empty(2, 0, dtype=torch.long)
    out = net.spatial(indicator, torch.empty(2, 0, 16), nothing, torch.arange(8).expand(2, -1))
    assert out.shape == (1, 2, 8, 32)


def test_loss_is_the_sum_of_first_and_later_frames() -> None:
    losses = model().loss(torch.randn(2, 3, 4, 8, 4), Condition())
    torch.testing.assert_close(losses["loss"], losses["image"] + losses["video"])
    single = model().loss(torch.randn(2, 1, 4, 8, 4), Condition())
    assert set(single) == {"loss", "image", "per_token"}


def test_losses_by_latent_frame() -> None:
    torch.manual_seed(0)
    losses = model().loss(torch.randn(2, *astuple(GRID), 4), Condition())
    by_frame = [losses[f"frame_{i}"] for i in range(3)]
    assert by_frame[0] == losses["image"].detach()
    torch.testing.assert_close(sum(by_frame[1:]) / 2, losses["video"].detach())


def test_a_corrupted_history_shows_what_is_visible_of_earlier_frames() -> None:
    """With nothing visible the frame's loss is the same whatever came before."""
    tokens = torch.randn(2, *astuple(GRID), 4)
    other = torch.cat([torch.randn_like(tokens[:, :2]), tokens[:, 2:]], dim=1)
    for history, blind in (("complete", False), ("corrupted", True)):
        net = model(history=history)
        net._draw_num_visible = lambda: 0  # type: ignore[method-assign]
        losses = []
        for clips in (tokens, other):
            torch.manual_seed(0)
            losses.append(net.loss(clips, Condition())["frame_2"])
        assert bool(losses[0] == losses[1]) is blind
    with pytest.raises(UserError, match="leave out history"):
        model(history="corrupted", tam=False)


@pytest.mark.parametrize("order", ["raster", "fixed"])
def test_an_order_that_is_the_same_for_all(order: Order) -> None:
    net = model(order=order)
    expected = same_order(order, 8)
    assert expected is not None
    assert sorted(expected.tolist()) == list(range(8))
    assert (expected.tolist() == list(range(8))) is (order == "raster")
    assert torch.equal(net.orders(5, torch.device("cpu")), expected.expand(5, -1))
    starts = {net._draw_num_visible() for _ in range(100)}
    sizes = set_sizes(8, 4)
    assert starts == {sum(sizes[:i]) for i in range(len(sizes))}
    filled: list[list[int]] = []
    spatial = net.spatial.forward

    def noted(*given: torch.Tensor) -> torch.Tensor:
        filled.append(given[3][0].tolist())
        return spatial(*given)

    net.spatial.forward = noted  # type: ignore[method-assign]
    options = net.options_for("continuous")().replace(diffusion_steps=1)
    net.generate(Request(Condition(), GRID.with_frames(1), options=options))
    assert [i for places in filled for i in places] == expected.tolist()
    assert "same_order" not in model().state_dict()


def test_a_longer_clip_than_trained_can_be_generated() -> None:
    """Times are stretched over the trained length, so any length goes (released code)."""
    options = DiffusionSampling(diffusion_steps=2)
    tokens = model().generate(Request(Condition(), TokenGrid(5, 4, 8), options=options))
    assert tokens.shape == (1, 5, 4, 8, 4)


@pytest.mark.parametrize("norm", ["pre", "branch", "post"])
@pytest.mark.parametrize("order", ["video", "frame"])
def test_options_generate(norm: str, order: str) -> None:
    net = model(norm=norm, order=order)
    tokens = net.generate(Request(Condition(), GRID, options=DiffusionSampling(diffusion_steps=2)))
    assert torch.isfinite(tokens).all()


def test_a_grid_that_patches_do_not_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        NOVA(SPEC, TokenGrid(3, 6, 8), ContextSpec(), SIZE)


def test_dropout_is_for_training_alone() -> None:
    net = model(dropout=0.5)
    indicator = torch.randn(1, 2, net.temporal.num_tokens, 32)
    places = torch.arange(8).expand(2, -1)
    for layers in (
        lambda: net.spatial(indicator, torch.zeros(2, 4, 16), places[:, :4], places[:, 4:]),
        lambda: net.temporal(torch.zeros(1, 2, 0, 32), None, 3),
    ):
        net.eval()
        assert torch.equal(layers(), layers())
        net.train()
        assert not torch.equal(layers(), layers())


@pytest.mark.parametrize("part", ["text_norm", "motion", "time", "temporal_patch"])
@pytest.mark.parametrize("nulls", ["learned", "table"])
def test_frozen_parts_are_not_trained(part: Part, nulls: str) -> None:
    context = ContextSpec(text_dim=8, text_len=3, conditions={"motion": 1})
    net = NOVA(SPEC, GRID, context, SIZE, frozen=[part], nulls=nulls)  # type: ignore[arg-type]
    names = {
        "text_norm": ("context.text.1.",),
        "motion": ("context.motion.", "context.fps."),
        "time": ("temporal.time.",),
        "temporal_patch": ("temporal.patch.",),
    }[part]
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad != name.startswith(names), name


def test_a_part_that_is_not_there_cannot_be_frozen() -> None:
    with pytest.raises(UserError, match="without that condition"):
        model(frozen=["motion"])


@pytest.mark.parametrize("type_", ["continuous", "discrete"])
def test_without_tam_everything_sees_what_is_known_of_everything(type_: TokenType) -> None:
    spec = TokenSpec(type_, 4, (4, 8, 8), True)
    net = NOVA(spec, GRID, ContextSpec(), SIZE, num_sets=4, tam=False).eval()
    context = torch.zeros(1, 1, 0, 32)
    frames = torch.randint(4, (1, 3, 4, 8)) if type_ == "discrete" else torch.randn(1, 3, 4, 8, 4)
    known = torch.zeros(1, 3, 4, 8, dtype=torch.bool)
    known[:, 2, :, :4] = True
    before = net.temporal.whole_clip(context, frames, known)
    for place, seen in (((0, 2, 0, 0), True), ((0, 2, 0, 7), False), ((0, 0, 1, 1), False)):
        changed = frames.clone()
        changed[place] = (changed[place] + 1) % 4 if type_ == "discrete" else changed[place] + 1
        after = net.temporal.whole_clip(context, changed, known)
        assert torch.allclose(before[:, :, 0], after[:, :, 0]) != seen


@pytest.mark.parametrize("order", ["video", "frame"])
def test_without_tam_clips_are_drawn_and_continued(order: str) -> None:
    net = model(tam=False, order=order)
    options = DiffusionSampling(diffusion_steps=2, guidance=2.0)
    counts = net.num_evaluations(GRID, options=options)
    steps: list[int] = []
    prefix = torch.randn(2, 1, 4, 8, 4)
    condition = Condition(values={"label": torch.tensor([1, 2])})
    tokens = net.generate(
        Request(condition, GRID, prefix=prefix, options=options, on_step=lambda: steps.append(1))
    )
    assert tokens.shape == (2, 3, 4, 8, 4)
    assert torch.equal(tokens[:, :1], prefix)
    assert counts == {"spatial layers": 4, "temporal layers": 4, "diffusion head": 8}
    assert len(steps) == 4


def test_without_tam_there_is_no_window_to_move() -> None:
    with pytest.raises(UserError, match="there is no moving window"):
        model(tam=False).generate(Request(Condition(), GRID, options=NovaSampling(overlap=1)))


def test_bf16_loss_is_near_that_in_float32() -> None:
    net, tokens = model(), torch.randn(2, 3, 4, 8, 4)
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(net.loss(tokens, Condition())["loss"].item())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


ABLATIONS: dict[str, dict[str, object]] = {
    "without TAM": {"tam": False},
    "scale and shift off": {"scale_shift": "off"},
    "scale and shift of rank 2": {"scale_shift": 2},
    "scale and shift full": {"scale_shift": "full"},
    "norm before": {"norm": "pre"},
    "norm after the residual": {"norm": "post"},
    "norm on the branch": {"norm": "branch"},
    "two sets": {"num_sets": 2},
    "an order for each frame": {"order": "frame"},
    "flow matching": {"diffusion": DiffusionOptions(process="flow")},
    "published nulls": {"nulls": "table"},
}


@pytest.mark.parametrize(
    ("ablation", "type_"),
    [
        *((name, "continuous") for name in ABLATIONS),
        ("two sets", "discrete"),
        ("without TAM", "discrete"),
    ],
)
def test_ablations_train_and_sample(ablation: str, type_: TokenType) -> None:
    """Each has gradients everywhere, gets better by a step, and draws as many sets as it says."""
    torch.manual_seed(0)
    spec = TokenSpec(type_, 4, (4, 8, 8), True)
    context = ContextSpec(text_dim=8, text_len=3, conditions={"label": 3, "motion": 1})
    options = {"num_sets": 4, **ABLATIONS[ablation]}
    net = NOVA(spec, GRID, context, SIZE, **options)  # type: ignore[arg-type]
    condition = Condition(
        text=torch.randn(2, 3, 8),
        text_mask=torch.tensor([[True, True, False]] * 2),
        values={"label": torch.tensor([0, 2]), "motion": torch.tensor([1.0, 4.0])},
    )
    shape = (2, GRID.t, GRID.h, GRID.w)
    tokens = torch.randint(4, shape) if type_ == "discrete" else torch.randn(*shape, 4)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    losses = []
    for _ in range(2):
        torch.manual_seed(1)  # the same noise
        loss = net.loss(tokens, condition)["loss"]
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None for p in net.parameters())
    assert losses[1] < losses[0]
    few = {"diffusion_steps": 2} if type_ == "continuous" else {}
    drawing = NOVA.options_for(type_)().replace(guidance=2.0, **few)
    steps: list[int] = []
    drawn = net.eval().generate(
        Request(condition, GRID, options=drawing, on_step=lambda: steps.append(1))
    )
    assert drawn.shape == tokens.shape
    assert torch.isfinite(drawn).all()
    assert len(steps) == net.num_evaluations(GRID, options=drawing)["spatial layers"]


@pytest.mark.parametrize("process", ["ddpm", "flow"])
@pytest.mark.parametrize("nulls", ["learned", "table"])
def test_a_network_in_bf16_trains_and_samples(process: Process, nulls: str) -> None:
    """Noise levels stay exact: in bf16 the smallest would be none."""
    context = ContextSpec(text_dim=8, text_len=3, conditions={"label": 3, "motion": 1})
    diffusion = DiffusionOptions(process=process)
    exact = NOVA(SPEC, GRID, context, SIZE, nulls=nulls, num_sets=2, diffusion=diffusion)  # type: ignore[arg-type]
    net = copy.deepcopy(exact).bfloat16()
    assert torch.equal(net.head.train_levels, exact.head.train_levels)
    assert torch.equal(net.head.train_times, exact.head.train_times)
    condition = Condition(
        text=torch.randn(2, 3, 8),
        text_mask=torch.ones(2, 3, dtype=torch.bool),
        values={"motion": torch.tensor([1.0, 4.0])},
    )
    tokens = torch.randn(2, GRID.t, GRID.h, GRID.w, 4)
    losses = []
    for model in (exact, net):
        torch.manual_seed(0)
        losses.append(model.loss(tokens, condition)["loss"])
    losses[1].backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.05)
    drawn = net.eval().generate(
        Request(condition, GRID, options=DiffusionSampling(diffusion_steps=2, guidance=2.0))
    )
    assert torch.isfinite(drawn).all()
