"""Frame diffusion: levels, losses and schedules against independent code in this file, and all orders of sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from arvid.codes import ScalarCodes
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
from arvid.nn.denoiser import CLEAN_TIME
from arvid.nn.noise import GaussianNoise
from arvid.nn.noise_levels import draw_levels, fused_snr_weight, schedule
from arvid.paradigms.frame_diffusion import FrameDiffusion

GRID = TokenGrid(3, 2, 4)
SIZE = Size(dim=32, depth=2, num_heads=2)
SPECS = {
    "discrete": TokenSpec("discrete", 12, (4, 8, 8), True, codes=ScalarCodes((4, 3))),
    "continuous": TokenSpec("continuous", 4, (4, 8, 8), True),
}
CONTEXT = ContextSpec(conditions={"label": 5})
BATCH = 2
SYSTEMS: dict[str, dict[str, Any]] = {
    "far": {},
    "forcing": {"attention": "full", "clean_share": 0.0, "level_draw": "uniform"},
    "whole": {"attention": "full", "levels": "common", "clean_share": 0.0},
    "causal whole": {"levels": "common", "clean_share": 0.0},
    "teacher": {"history": "clean copy", "clean_share": 0.0},
    "pyramid": {"levels": "non-decreasing", "stagger": 1.0},
    "modulated": {"conditioning": "modulation"},
    "v": {"continuous_noise": "v", "loss_weight": "fused snr", "discrete_noise": "uniform"},
    "tube": {"discrete_noise": "tube", "patch": 1},
    "metric": {"discrete_noise": "metric", "attention": "full", "stagger": 0.0},
}
systems = pytest.mark.parametrize("system", SYSTEMS)
kinds = pytest.mark.parametrize("kind", ["discrete", "continuous"])


@pytest.fixture
def build() -> Callable[..., FrameDiffusion]:
    """A small model. Weights with a small initialisation get large ones, so that all dependences are visible."""

    def _build(kind: str = "continuous", **options: Any) -> FrameDiffusion:
        model = FrameDiffusion(SPECS[kind], GRID, CONTEXT, SIZE, **options)
        for name, parameter in model.named_parameters():
            if "modulation" in name or name.startswith("head"):
                torch.nn.init.normal_(parameter, std=0.3)
        return model.eval()

    return _build


def some_condition() -> Condition:
    return Condition(values={"label": torch.tensor([1, 4])})


def some_tokens(model: FrameDiffusion, frames: int = GRID.t) -> Tensor:
    shape = (BATCH, frames, GRID.h, GRID.w)
    if model.spec.type == "discrete":
        return torch.randint(model.spec.size, shape)
    return torch.randn(*shape, model.spec.size)


def options(model: FrameDiffusion, steps: int = 3, **changes: Any) -> SamplingOptions:
    own = model.options_for(model.spec.type)()
    name = "diffusion_steps" if model.spec.type == "continuous" else "discrete_steps"
    return own.replace(**{name: steps}, **changes)


def generate(
    model: FrameDiffusion, frames: int = GRID.t, prefix: Tensor | None = None, **changes: Any
) -> Tensor:
    return model.generate(
        Request(
            some_condition(),
            GRID.with_frames(frames),
            prefix=prefix,
            options=options(model, **changes),
            generator=torch.Generator().manual_seed(0),
        )
    )


# Training


def test_the_loss_is_far_s(build: Any) -> None:
    """FAR's loss: levels of sigmoid(N(0, 1)); a tenth of the frames is clean, with time -1 and without loss.

    The mean is over the noisy frames of a clip, then over clips.
    """
    model = build(clean_share=0.4)
    tokens, condition = some_tokens(model), some_condition()
    torch.manual_seed(3)
    loss = model.loss(tokens, condition)["loss"]

    torch.manual_seed(3)
    torch.rand(BATCH)  # dropped conditions
    level = 1 / (1 + (-torch.randn(BATCH, GRID.t)).exp())
    clean = torch.rand(BATCH, GRID.t) < 0.4
    noise = torch.randn(tokens.shape)
    assert clean.any()
    assert not clean.all(1).any()
    level[clean] = 0
    share = level[:, :, None, None, None]
    noisy = (1 - share) * tokens + share * noise
    times = torch.where(clean, torch.tensor(-1.0), 1000 * level)
    context = model.context(condition, BATCH)
    predicted = model.to_frames(model.head(model.denoise(context, tokens, noisy, times)))
    of_clips = []
    for b in range(BATCH):
        errors = [
            (predicted[b, i] - (noise[b, i] - tokens[b, i])).square().mean()
            for i in range(GRID.t)
            if not clean[b, i]
        ]
        of_clips.append(sum(errors) / len(errors))
    torch.testing.assert_close(loss, sum(of_clips) / BATCH)


def test_the_loss_of_ids_is_the_cross_entropy_of_masked_ones(build: Any) -> None:
    model = build("discrete", clean_share=0.0)
    tokens = some_tokens(model)
    torch.manual_seed(3)
    loss = model.loss(tokens, Condition())

    torch.manual_seed(3)
    torch.rand(BATCH)
    ratio = (torch.rand(BATCH, GRID.t) * math.pi / 2).cos()
    torch.rand(BATCH, GRID.t)
    masked = torch.rand(tokens.shape) < ratio[..., None, None]
    context = model.context(Condition(), BATCH)
    noisy = torch.where(masked, model.spec.size, tokens)
    hidden = model.denoise(context, tokens, noisy, 1000 * ratio)
    log_p = model.head.logits(hidden).log_softmax(-1).unflatten(2, (GRID.h, GRID.w))
    losses = -log_p.gather(-1, tokens[..., None])[..., 0]
    expected = sum(losses[b][masked[b]].mean() for b in range(BATCH)) / BATCH
    torch.testing.assert_close(loss["loss"], expected)
    torch.testing.assert_close(loss["per_token"], losses[masked].mean())


def test_a_batch_without_noisy_frames_has_loss_0(build: Any) -> None:
    model = build(clean_share=1.0)
    assert model.loss(some_tokens(model), Condition())["loss"] == 0


def levels(**changes: Any) -> tuple[Tensor, Tensor]:
    given: dict[str, Any] = {"distribution": "logit-normal", "shift": 1.0, "clean_share": 0.1}
    given |= {"levels": "independent", "device": torch.device("cpu")} | changes
    return draw_levels(4000, 5, **given)


def test_levels_are_logit_normal_and_a_tenth_is_clean() -> None:
    level, clean = levels()
    assert clean.float().mean() == pytest.approx(0.1, abs=0.01)
    assert (level[clean] == 0).all()
    logit = level[~clean].logit()
    assert logit.mean() == pytest.approx(0, abs=0.03)
    assert logit.std() == pytest.approx(1, abs=0.03)
    assert torch.corrcoef(level.T)[0, 1].abs() < 0.06


def test_other_ways_of_drawing_levels() -> None:
    common, _ = levels(levels="common", clean_share=0.0, distribution="uniform")
    assert torch.equal(common, common[:, :1].expand(-1, 5))
    assert common.mean() == pytest.approx(0.5, abs=0.02)
    rising, clean = levels(levels="non-decreasing")
    assert (rising.diff(dim=1) >= 0).all()
    assert (clean.int().diff(dim=1) <= 0).all()
    cosine, _ = levels(distribution="cosine", clean_share=0.0)
    assert cosine.mean() == pytest.approx(2 / math.pi, abs=0.01)
    moved, _ = levels(distribution="uniform", clean_share=0.0, shift=3.0)
    assert (moved > 0.75).float().mean() == pytest.approx(0.5, abs=0.02)  # 3·0.5 / (1 + 2·0.5)


@pytest.mark.parametrize("causal", [True, False])
def test_the_fused_weight_is_dfot_s(causal: bool) -> None:
    """DFoT's formula, one frame at a time. s: clipped ratio in units of the clip; c: the ratio of the neighbours."""
    snr = torch.rand(2, 4, dtype=torch.float64) * 9
    d, clip = 0.9, 5.0

    def shown(ratios: list[float]) -> float:
        mean = ratios[0]
        for ratio in ratios[1:]:
            mean = d * mean + (1 - d) * ratio
        return mean

    for row, weights in zip(snr, fused_snr_weight(snr, causal=causal), strict=True):
        s = [min(x, clip) / clip for x in row.tolist()]
        for i in range(4):
            before, behind = s[:i], s[:i:-1]
            c = shown(before) if before else 0.0
            if not causal:
                c = (c + (shown(behind) if behind else 0.0)) / 2
            clipped = (1 - (1 - s[i]) * (1 - d * c)) * clip
            fused = (1 - (1 - row[i].item() / clip) * (1 - d * c)) * clip
            assert weights[i].item() == pytest.approx(clipped / fused * fused / (fused + 1))


@kinds
@systems
def test_every_system_trains_and_continues(build: Any, kind: str, system: str) -> None:
    model = build(kind, **SYSTEMS[system]).train()
    tokens = some_tokens(model)
    model.loss(tokens, some_condition())["loss"].backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is None or g.isfinite().all() for g in gradients)
    drawn = generate(model.eval(), prefix=tokens[:, :1], guidance=2.0)
    assert drawn.shape == tokens.shape
    assert torch.equal(drawn[:, :1], tokens[:, :1])
    if kind == "discrete":
        assert drawn.max() < model.spec.size


def test_a_noisy_frame_sees_the_clean_copy_of_those_before_it(build: Any) -> None:
    """Teacher forcing in one pass equals one pass for each frame after its clean history."""
    model = build(history="clean copy", clean_share=0.0)
    tokens, noisy = some_tokens(model), some_tokens(model)
    times = 1000 * torch.rand(BATCH, GRID.t)
    context = model.context(Condition(), BATCH)
    together = model.denoise(context, tokens, noisy, times)
    for i in range(GRID.t):
        frames = torch.cat([tokens[:, :i], noisy[:, i : i + 1]], dim=1)
        told = torch.cat([torch.full((BATCH, i), CLEAN_TIME), times[:, i : i + 1]], dim=1)
        index = torch.arange(i + 1)
        blocks = model.network.block_index(index)
        alone = model.network(context, frames, told, index, mask=blocks[:, None] >= blocks)
        torch.testing.assert_close(together[:, i], alone[:, -1], rtol=1e-4, atol=1e-5)


def test_causal_frames_do_not_see_later_ones(build: Any) -> None:
    for attention, same in (("causal", True), ("full", False)):
        model = build(attention=attention)
        noisy = some_tokens(model)
        other = noisy.clone()
        other[:, -1] += 1
        context, times = model.context(Condition(), BATCH), torch.full((BATCH, GRID.t), 500.0)
        hidden = [model.denoise(context, noisy, x, times)[:, :-1] for x in (noisy, other)]
        assert torch.equal(*hidden) == same


# Sampling


@pytest.mark.parametrize("stagger", [0, 1, 2.5, 6])
def test_the_schedule_is_dfot_s_matrix(stagger: float) -> None:
    steps, frames = 6, 4
    num_rows = steps + math.floor((frames - 1) * stagger) + 1
    matrix = [
        [min(max(steps + math.floor(i * stagger) - m, 0), steps) for i in range(frames)]
        for m in range(num_rows)
    ]
    assert schedule(frames, 0, steps, stagger) == matrix
    assert matrix[-1] == [0] * frames
    different = sorted({tuple(row[2:]) for row in matrix}, reverse=True)
    assert schedule(frames, 2, steps, stagger) == [[0, 0, *row] for row in different]


def test_a_stagger_beyond_the_steps_is_one_frame_after_another() -> None:
    assert schedule(3, 0, 4, 9.0) == schedule(3, 0, 4, None) == schedule(3, 0, 4, 4)


def denoised(model: FrameDiffusion, x: Tensor, level: Tensor, i: int, j: int) -> Tensor:
    """Predictions of the clip's frames i..j-1 from all frames at their levels; clean frames have time -1."""
    context = model.context(some_condition(), BATCH)
    times = torch.where(level == 0, CLEAN_TIME if model.sees_clean else 0.0, 1000 * level)
    hidden = model.denoise(context, x, x, times.expand(BATCH, -1))
    return model.to_frames(model.head(hidden))[:, i:j]


@pytest.mark.parametrize("attention", ["causal", "full"])
@pytest.mark.parametrize("noise", ["flow", "v"])
@torch.no_grad()
def test_stagger_s_is_frame_by_frame_and_0_the_whole_clip(
    build: Any, attention: str, noise: str
) -> None:
    """Equal to separate loops for each order, from the same noise."""
    model = build(attention=attention, continuous_noise=noise)
    process = model.process
    assert isinstance(process, GaussianNoise)
    levels = torch.tensor(process.levels(3, 1.0)).flip(0)
    start = torch.randn(
        BATCH, GRID.t, GRID.h, GRID.w, 4, generator=torch.Generator().manual_seed(0)
    )

    whole = process.corrupt(start, start, torch.ones(BATCH, GRID.t))
    for now, then in pairwise(levels):
        every = now.expand(GRID.t)
        velocity = denoised(model, whole, every, 0, GRID.t)
        whole = process.step(whole, velocity, every, then.expand(GRID.t))
    torch.testing.assert_close(generate(model, stagger=0), whole, rtol=1e-4, atol=1e-5)

    x, level = process.corrupt(start, start, torch.ones(BATCH, GRID.t)), torch.ones(GRID.t)
    for i in range(GRID.t):
        for now, then in pairwise(levels):
            level[i] = now
            velocity = denoised(model, x, level, i, i + 1)
            x[:, i : i + 1] = process.step(x[:, i : i + 1], velocity, now[None], then[None])
        level[i] = 0
    torch.testing.assert_close(generate(model, stagger=3), x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(generate(model), x, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, x, atol=1e-2)


@kinds
@pytest.mark.parametrize("stagger", [0.0, 1.0, None])
@pytest.mark.parametrize("prefix_frames", [0, 1])
def test_the_cache_changes_nothing_in_any_order(
    build: Any, kind: str, stagger: float | None, prefix_frames: int
) -> None:
    model = build(kind)
    prefix = some_tokens(model)[:, :prefix_frames] if prefix_frames else None
    drawn = [
        generate(
            model,
            prefix=prefix,
            stagger=stagger,
            guidance=1.7,
            history_guidance=1.5,
            context_noise=0.1,
            use_cache=use_cache,
        )
        for use_cache in (True, False)
    ]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-4, atol=1e-4)


@kinds
@systems
def test_clips_may_be_three_times_as_long_as_trained(build: Any, kind: str, system: str) -> None:
    model = build(kind, **SYSTEMS[system])
    prefix = some_tokens(model, 2)
    steps: list[int] = []
    request = Request(
        some_condition(),
        GRID.with_frames(9),
        prefix=prefix,
        options=options(model, overlap=2),
        on_step=lambda: steps.append(1),
    )
    pieces = list(model.stream(request))
    drawn = torch.cat(pieces, dim=1)
    assert drawn.shape[1] == 9
    assert torch.equal(drawn[:, :2], prefix)
    said = model.num_evaluations(request.grid, prefix_frames=2, options=request.options)
    assert said == {"transformer": len(steps)}


def test_conditions_per_frame_follow_the_clip_through_its_windows(build: Any) -> None:
    context = ContextSpec(frame_conditions={"actions": 5}, frames_per_latent=4)
    model = FrameDiffusion(SPECS["continuous"], GRID, context, SIZE).eval()
    actions = torch.randint(5, (BATCH, 7, 4))
    other = actions.clone()
    other[:, 5] = (other[:, 5] + 1) % 5
    drawn = [
        model.generate(
            Request(
                Condition(values={"actions": values}),
                GRID.with_frames(7),
                options=options(model),
                generator=torch.Generator().manual_seed(0),
            )
        )
        for values in (actions, other)
    ]
    same = [torch.equal(drawn[0][:, i], drawn[1][:, i]) for i in range(7)]
    assert same == [True] * 5 + [False] * 2


def test_evaluations_by_order(build: Any) -> None:
    model = build()
    for stagger, expected in ((0, 5), (2, 5 + 2 * 2), (None, 15)):
        own = options(model, steps=5, stagger=stagger)
        assert model.num_evaluations(GRID, options=own) == {"transformer": expected}


@kinds
def test_given_frames_of_a_whole_clip_model_are_shown_as_noisy_as_the_others(
    build: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(kind, **SYSTEMS["whole"])
    prefix = some_tokens(model)[:, :1]
    shown: list[tuple[Tensor, Tensor]] = []
    forward = model.network.forward

    def record(context: Tensor, frames: Tensor, times: Tensor, *rest: Any, **others: Any) -> Tensor:
        shown.append((frames.clone(), times))
        return forward(context, frames, times, *rest, **others)

    monkeypatch.setattr(model.network, "forward", record)
    generate(model, prefix=prefix)
    generator = torch.Generator().manual_seed(0)
    noise = model.process.draw((BATCH, GRID.t, GRID.h, GRID.w), torch.device("cpu"), generator)
    assert len(shown) == 3
    for frames, times in shown:
        assert (times == times[:, :1]).all()
        expected = model.process.corrupt(prefix, noise[:, :1], times[:, :1] / 1000)
        torch.testing.assert_close(frames[:, :1], expected)


@torch.no_grad()
def test_guidance_by_history_leads_away_from_noise_in_its_place(build: Any) -> None:
    """One denoising step after a given frame, against the formula of two passes."""
    model = build()
    prefix = some_tokens(model)[:, :1]
    drawn = generate(model, frames=2, prefix=prefix, steps=1, history_guidance=2.5)
    noise = torch.randn(BATCH, 2, GRID.h, GRID.w, 4, generator=torch.Generator().manual_seed(0))
    context = model.context(some_condition(), BATCH)
    velocity = []
    for first, time in ((prefix, CLEAN_TIME), (noise[:, :1], 1000.0)):
        frames = torch.cat([first, noise[:, 1:]], dim=1)
        times = torch.tensor([time, 1000.0]).expand(BATCH, -1)
        velocity.append(model.to_frames(model.head(model.denoise(context, frames, frames, times))))
    with_history, without = (v[:, 1] for v in velocity)
    expected = noise[:, 1] - (without + 2.5 * (with_history - without))
    torch.testing.assert_close(drawn[:, 1], expected, rtol=1e-4, atol=1e-5)


def test_noise_on_the_context_changes_all_but_the_first_frame(build: Any) -> None:
    model = build()
    clean, noisy = generate(model), generate(model, context_noise=0.3)
    assert torch.equal(clean[:, 0], noisy[:, 0])
    assert not torch.allclose(clean[:, 1], noisy[:, 1], atol=1e-3)


def test_options_that_exclude_each_other_are_refused(build: Any) -> None:
    for given, message in (
        ({"history": "clean copy"}, "clean_share 0"),
        ({"history": "clean copy", "clean_share": 0.0, "attention": "full"}, "causal attention"),
        ({"loss_weight": "fused snr"}, "continuous_noise to v"),
        ({"patch": 3}, "do not tile"),
    ):
        with pytest.raises(UserError, match=message):
            build(**given)
    with pytest.raises(UserError, match="patch must be 1, not 2"):
        build("discrete", patch=2)
    with pytest.raises(UserError, match="never saw in training"):
        generate(build(**SYSTEMS["teacher"]), history_guidance=2.0)
