"""NOVA: masks, sets, indicators, and what its parts may see."""

from __future__ import annotations

import math

import pytest
import torch

from arvid.contracts import Condition, ContextSpec, SamplingOptions, Size, TokenGrid, TokenSpec
from arvid.paradigms.nova import NOVA
from arvid.paradigms.nova.schedule import draw_mask_ratio, random_orders, set_sizes
from arvid.paradigms.nova.temporal import ScalingShift

SPEC = TokenSpec("continuous", 4, (4, 8, 8), True)
GRID = TokenGrid(3, 4, 8)
SIZE = Size(dim=32, depth=6, num_heads=2, head_dim=32, head_depth=1)


def model(**options: object) -> NOVA:
    context = ContextSpec(num_classes=3)
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
    context = net.context(Condition(label=torch.tensor([1])), 1)
    frames = torch.randn(1, 2, 4, 8, 4)
    before = net.temporal(context, frames, 3)
    changed = frames.clone()
    changed[:, 1] += 1
    after = net.temporal(context, changed, 3)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_masked_tokens_do_not_reach_the_spatial_layers() -> None:
    net = model()
    indicator = torch.randn(1, net.temporal.num_tokens, 32)
    frame = torch.randn(1, 4, 8, 4)
    visible = torch.tensor([[0, 5]])
    before = net.spatial(indicator, frame, visible)
    changed = torch.randn_like(frame)
    changed[:, 0:2, 0:2] = frame[:, 0:2, 0:2]  # patch 0
    changed[:, 2:4, 2:4] = frame[:, 2:4, 2:4]  # patch 5 of a row of 4
    torch.testing.assert_close(before, net.spatial(indicator, changed, visible))
    torch.testing.assert_close(before, net.spatial(indicator, frame, visible.flip(1)))


def test_no_visible_token_is_legal() -> None:
    net = model()
    indicator = torch.randn(2, net.temporal.num_tokens, 32)
    out = net.spatial(indicator, torch.randn(2, 4, 8, 4), torch.empty(2, 0, dtype=torch.long))
    assert out.shape == (2, 8, 32)


def test_loss_is_the_sum_of_first_and_later_frames() -> None:
    losses = model().loss(torch.randn(2, 3, 4, 8, 4), Condition())
    torch.testing.assert_close(losses["loss"], losses["image"] + losses["video"])
    single = model().loss(torch.randn(2, 1, 4, 8, 4), Condition())
    assert set(single) == {"loss", "image", "per_token"}


def test_a_longer_clip_than_trained_can_be_generated() -> None:
    """Times are stretched over the trained length, so any length goes (released code)."""
    options = SamplingOptions(diffusion_steps=2)
    tokens = model().generate(Condition(), TokenGrid(5, 4, 8), options=options)
    assert tokens.shape == (1, 5, 4, 8, 4)


@pytest.mark.parametrize("norm", ["pre", "branch", "post"])
@pytest.mark.parametrize("order", ["video", "frame"])
def test_options_generate(norm: str, order: str) -> None:
    net = model(norm=norm, order=order)
    tokens = net.generate(Condition(), GRID, options=SamplingOptions(diffusion_steps=2))
    assert torch.isfinite(tokens).all()


def test_a_grid_that_patches_do_not_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        NOVA(SPEC, TokenGrid(3, 6, 8), ContextSpec(), SIZE)


def test_released_widths_count_as_the_checkpoints_do() -> None:
    """d48w1024: 16 temporal and 32 spatial blocks of 12 tensors; block parameters of the published file."""
    with torch.device("meta"):
        net = NOVA(
            SPEC,
            TokenGrid(9, 60, 96),
            ContextSpec(text_dim=2560, text_len=256, motion=True, fps=True),
            Size(dim=1024, depth=48, num_heads=16, head_dim=1280, head_depth=3),
        )
    spatial = sum(p.numel() for p in net.spatial.parameters()) - 1024  # the mask token counts apart
    assert spatial == 403_098_624
    head = sum(p.numel() for p in net.head.parameters())
    assert head == 32_844_816
