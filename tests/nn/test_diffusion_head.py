"""The diffusion head: schedules against diffusers, losses and samplers against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from arvid.contracts import UserError
from arvid.nn.heads.diffusion import MAX_ROWS, DiffusionHead, WholeFrame
from arvid.nn.heads.diffusion_process import (
    DiffusionSampling,
    Process,
    PublishedStep,
    diffusers_scheduler,
    guide,
    sampling_steps,
)


@pytest.mark.parametrize(("process", "shift"), [("ddpm", 1.0), ("flow", 1.0), ("flow", 4.0)])
def test_a_trained_head_draws_its_data(process: Process, shift: float) -> None:
    """Tokens are N(2·h, 0.3²) given the hidden state h: mean and spread come back."""
    torch.manual_seed(0)
    head = DiffusionHead(1, 1, width=32, depth=2, process=process, shift=shift, repeats=8)
    optimizer = torch.optim.Adam(head.parameters(), 6e-3)
    for _ in range(200):
        hidden = torch.randint(-1, 2, (64, 4, 1)).float()
        target = 2 * hidden + 0.3 * torch.randn_like(hidden)
        loss = head.loss(hidden, target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for value in (-1.0, 1.0):
        options = DiffusionSampling(diffusion_steps=50)
        drawn = head.sample(torch.full((1, 500, 1), value), options=options)
        assert drawn.mean().item() == pytest.approx(2 * value, abs=0.2)
        assert drawn.std().item() == pytest.approx(0.3, abs=0.15)


@pytest.mark.parametrize(
    ("process", "num_steps", "new_shift"),
    [("ddpm", 25, None), ("ddpm", 128, None), ("flow", 25, None), ("flow", 7, 3.0)],
)
def test_steps_are_those_of_diffusers(
    process: Process, num_steps: int, new_shift: float | None
) -> None:
    scheduler = diffusers_scheduler(process, 1.0)
    if new_shift is not None:
        scheduler.set_shift(new_shift)
    scheduler.set_timesteps(num_steps)
    theirs = torch.randn(1, 4, 3)
    drawing, drawing_theirs = (torch.Generator().manual_seed(0) for _ in range(2))
    for step, time in zip(
        sampling_steps(process, num_steps, 1.0, new_shift), scheduler.timesteps, strict=True
    ):
        assert step.time == pytest.approx(float(time))
        prediction = torch.sin(3 * theirs)
        x = step.keep * theirs + step.output * prediction
        if step.noise:
            x = x + step.noise * torch.randn(x.shape, generator=drawing)
        theirs = scheduler.step(prediction, time, theirs, generator=drawing_theirs).prev_sample
        torch.testing.assert_close(x, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_steps", [25, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_steps_are_those_of_diffusers_to_the_last_bit(
    num_steps: int, dtype: torch.dtype
) -> None:
    scheduler = diffusers_scheduler("ddpm", 1.0)
    scheduler.set_timesteps(num_steps)
    theirs = torch.randn(1, 64, 3, dtype=dtype)
    drawing, drawing_theirs = (torch.Generator().manual_seed(0) for _ in range(2))
    num_unequal = 0
    for published, usual, time in zip(
        sampling_steps("ddpm", num_steps, as_published=True),
        sampling_steps("ddpm", num_steps),
        scheduler.timesteps,
        strict=True,
    ):
        prediction = torch.sin(3 * theirs)
        noise = torch.randn(theirs.shape, generator=drawing, dtype=dtype)
        assert isinstance(published, PublishedStep)
        ours = published.mean(theirs, prediction) + published.deviation * noise
        other = usual.mean(theirs, prediction).to(dtype) + usual.noise * noise
        theirs = scheduler.step(prediction, time, theirs, generator=drawing_theirs).prev_sample
        assert torch.equal(ours, theirs)
        num_unequal += not torch.equal(other, theirs)
    assert num_unequal > num_steps / 2


def test_published_times() -> None:
    times = [step.time for step in sampling_steps("ddpm", 25)]
    assert times[:2] == [961, 921]
    assert times[-2:] == [41, 1]
    times = [step.time for step in sampling_steps("flow", 25)]
    assert times[:2] == pytest.approx([1000, 958.375])
    assert times[-2:] == pytest.approx([42.625, 1])


def test_squared_cosine_schedule_is_the_published_one() -> None:
    alphas = DiffusionHead(4, 2, width=8, depth=1).train_levels
    expected = torch.tensor([0.999959, 0.492285, 3.503e-3, 1.554e-4, 2.4e-9])
    torch.testing.assert_close(alphas[[0, 500, 961, 991, 999]], expected, rtol=2e-2, atol=1e-10)


def test_a_shift_moves_the_times_towards_noise() -> None:
    head = DiffusionHead(1, 1, width=8, depth=1, process="flow", shift=4.0)
    tokens, noise = torch.zeros(20_000, 1), torch.randn(20_000, 1)
    index = head._draw_times(tokens.shape[:-1], tokens.device)
    noisy, goal = head._corrupt(tokens, noise, index, torch.float32)
    time = head.train_times[index]
    torch.testing.assert_close(noisy, time[:, None] / 1000 * goal)  # as tokens are 0
    assert time.median().item() == pytest.approx(800, abs=10)  # 4 · 0.5 / (1 + 3 · 0.5)
    steps = sampling_steps("flow", 5, 4.0)
    assert steps[0].time == 1000
    assert steps[2].time == pytest.approx(800, abs=10)


def test_ddpm_has_no_shift() -> None:
    with pytest.raises(UserError, match="flow process"):
        DiffusionHead(1, 1, width=8, depth=1, process="ddpm", shift=2.0)


def test_the_smallest_times_have_noise_in_bf16_unless_as_published() -> None:
    """Facts §2.2: with ᾱ rounded to bf16 the amplitude is 0 below t = 21, and 0.0625 there."""
    tokens, noise = torch.zeros(22, 1), torch.ones(22, 1)
    index = torch.arange(22)
    for rounded in (False, True):
        head = DiffusionHead(1, 1, width=8, depth=1, rounded_noise=rounded)
        noisy, _ = head._corrupt(tokens, noise, index, torch.bfloat16)
        assert (noisy[:21] == 0).all() == rounded
        expected = 0.0625 if rounded else (1 - head.train_levels[21]).sqrt().item()
        assert noisy[21].item() == pytest.approx(expected, rel=1e-4)
        full, _ = head._corrupt(tokens, noise, index, torch.float32)
        assert (full > 0).all()


def test_times_are_embedded_alike_one_by_one_and_from_the_table() -> None:
    head = DiffusionHead(4, 2, width=8, depth=1)
    few = torch.tensor([0, 3, 999])
    many = torch.cat([few, torch.zeros(1000, dtype=torch.long)])
    torch.testing.assert_close(head._embed_times(few), head._embed_times(many)[:3])


def draw(head: DiffusionHead, hidden: Tensor, seed: int = 0, **options: float) -> Tensor:
    return head.sample(
        hidden[0],
        null_hidden=hidden[1] if len(hidden) > 1 else None,
        image_hidden=hidden[2] if len(hidden) > 2 else None,
        options=DiffusionSampling(diffusion_steps=5, **options),  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(seed),
    )


def test_guidance_as_the_formula_says() -> None:
    given, null, image = torch.randn(3, 2, 4, 3)
    both = torch.stack([given, null])
    torch.testing.assert_close(
        guide(both, DiffusionSampling(guidance=3.0)), null + 3 * (given - null)
    )
    three = torch.stack([given, null, image])
    torch.testing.assert_close(
        guide(three, DiffusionSampling(guidance=3.0), image_guidance=1.5),
        null + 3 * (given - image) + 1.5 * (image - null),
    )


def test_renormalising_shrinks_towards_the_conditional_norm() -> None:
    given, null = torch.randn(2, 2, 4, 3)
    both = torch.stack([given, null])
    norm = given.flatten(1).norm(dim=1)
    shrunk = guide(both, DiffusionSampling(guidance=3.0, guidance_renorm=0.0))
    plain = guide(both, DiffusionSampling(guidance=3.0)).flatten(1).norm(dim=1)
    torch.testing.assert_close(shrunk.flatten(1).norm(dim=1), torch.minimum(norm, plain))
    least = (
        guide(both, DiffusionSampling(guidance=3.0, guidance_renorm=0.99)).flatten(1).norm(dim=1)
    )
    assert (least >= 0.99 * plain - 1e-5).all()


def test_guidance_ends_where_it_is_truncated() -> None:
    head = DiffusionHead(8, 3, width=16, depth=1)
    hidden = torch.randn(2, 1, 4, 8)
    alone = draw(head, hidden[:1])
    assert torch.equal(draw(head, hidden, guidance=1.0, guidance_trunc=1001.0), alone)
    assert not torch.allclose(draw(head, hidden, guidance=3.0, guidance_trunc=500.0), alone)
    guided = draw(head, hidden, guidance=3.0)
    assert not torch.allclose(draw(head, hidden, guidance=3.0, guidance_trunc=500.0), guided)


def test_modulations_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    head = DiffusionHead(8, 3, width=16, depth=2)
    hidden = torch.randn(2, 2, 4, 8)
    together = draw(head, hidden, guidance=2.0)
    assert MAX_ROWS > 5 * 2 * 2 * 4
    monkeypatch.setattr("arvid.nn.heads.diffusion.MAX_ROWS", 40)
    torch.testing.assert_close(draw(head, hidden, guidance=2.0), together)


def test_tokens_of_a_whole_frame_are_those_of_its_places() -> None:
    """Where the noise of the places is the same, it does not matter that it was drawn for all."""
    head = DiffusionHead(8, 3, width=16, depth=1)
    hidden, ids = torch.randn(2, 1, 2, 8), torch.tensor([[4, 1]])
    noises = torch.randn(6, 1, 5, 3)
    options = DiffusionSampling(diffusion_steps=5, guidance=2.0)
    frame = WholeFrame(ids, iter(noises).__next__)
    whole = head.sample(hidden[0], null_hidden=hidden[1], options=options, frame=frame)
    own = iter(noises[:, :, [4, 1]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *args, **kwargs: next(own))
        few = head.sample(hidden[0], null_hidden=hidden[1], options=options)
    torch.testing.assert_close(whole, few)


def test_an_untrained_block_is_the_published_formula() -> None:
    """Facts §1.11: LN without affine, scale and shift, two layers, an affine LN before gate and residual."""
    head = DiffusionHead(4, 2, width=8, depth=1)
    net, x, hidden = head.net, torch.randn(5, 2), torch.randn(5, 4)
    time = torch.tensor([0.0, 1, 500, 900, 999])
    u = net.embed_time(time) + net.condition(hidden)
    predicted = net(x, net.modulations(u))
    h = net.embed(x)
    scale, shift, gate = net.blocks[0].modulation(F.silu(u)).chunk(3, -1)
    inner = F.layer_norm(h, (8,), eps=1e-6) * (1 + scale) + shift
    h = h + gate * net.blocks[0].norm2(net.blocks[0].mlp(inner))
    scale, shift = net.modulation(F.silu(u)).chunk(2, -1)
    expected = net.head(F.layer_norm(h, (8,), eps=1e-6) * (1 + scale) + shift)
    torch.testing.assert_close(predicted, expected)


def test_published_head_counts_32_844_816_parameters() -> None:
    with torch.device("meta"):
        head = DiffusionHead(1024, 16, width=1280, depth=3)
    assert sum(p.numel() for p in head.parameters()) == 32_844_816


def test_steps_that_a_process_cannot_do_are_refused() -> None:
    assert len(sampling_steps("ddpm", 500)) == 500
    with pytest.raises(UserError, match="at most 500 diffusion steps, not 501"):
        sampling_steps("ddpm", 501)
    with pytest.raises(UserError, match="flow_shift is for the flow process"):
        sampling_steps("ddpm", 25, 1.0, 3.0)
