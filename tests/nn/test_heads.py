"""Token heads: filters, losses and samplers against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from arvid.contracts import SamplingOptions, Size, TokenSpec, UserError
from arvid.nn.heads import DiffusionOptions, build_head
from arvid.nn.heads.categorical import CategoricalHead, kept_tokens, sample_logits
from arvid.nn.heads.diffusion import DiffusionHead

GREEDY = SamplingOptions(temperature=0)


def two_stage_filter(logits: Tensor, top_k: int, top_p: float) -> set[int]:
    """The published filter on one distribution: top-k, then softmax and top-p over the survivors."""
    kth = logits.topk(top_k).values[-1]
    survivors = [i for i, value in enumerate(logits.tolist()) if value >= kth]
    weights = logits[survivors].softmax(0)
    order = weights.argsort(descending=True).tolist()
    kept, mass = set(), 0.0
    for place in order:
        if mass <= top_p:
            kept.add(survivors[place])
        mass += float(weights[place])
    return kept


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 0.9), (5, 0.5), (50, 0.9), (200, 0.99)])
def test_filter_keeps_what_the_two_stages_keep(top_k: int, top_p: float) -> None:
    logits = 2 * torch.randn(2, 3, 200)
    kept = kept_tokens(logits, top_k, top_p)
    for row, mask in zip(logits.flatten(0, 1), kept.flatten(0, 1), strict=True):
        assert set(mask.nonzero().flatten().tolist()) == two_stage_filter(row, top_k, top_p)


def test_ties_at_the_kth_logit_stay() -> None:
    kept = kept_tokens(torch.tensor([[[1.0, 2.0, 2.0, 0.0]]]), top_k=1, top_p=None)
    assert kept.tolist() == [[[False, True, True, False]]]


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log().expand(1, 30_000, 3)
    drawn = sample_logits(logits, SamplingOptions(), torch.Generator().manual_seed(0))
    shares = drawn.flatten().bincount(minlength=3) / 30_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.7]), atol=0.01, rtol=0)


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.randn(2, 3, 9)
    assert torch.equal(sample_logits(logits, GREEDY), logits.argmax(-1))


def test_uniform_logits_cost_log_v() -> None:
    head = CategoricalHead(8, 64)
    torch.nn.init.zeros_(head.logits.weight)
    loss = head.loss(torch.randn(2, 3, 8), torch.randint(64, (2, 3)))
    torch.testing.assert_close(loss, torch.full((2, 3), math.log(64)))


def test_guidance_extrapolates_from_the_null_logits() -> None:
    head = CategoricalHead(4, 4)
    torch.nn.init.eye_(head.logits.weight)
    given, null = torch.tensor([[[1.0, 0.9, 0, 0]]]), torch.tensor([[[1.0, 0.0, 0, 0]]])
    drawn = head.sample(
        given, options=SamplingOptions(temperature=0, guidance=2.0), null_hidden=null
    )
    assert drawn.item() == 1  # 0 + 2 · 0.9 beats 1


@pytest.mark.parametrize(("process", "shift"), [("ddpm", 1.0), ("flow", 1.0), ("flow", 4.0)])
def test_a_trained_diffusion_head_draws_its_data(process: str, shift: float) -> None:
    """Tokens are N(2·h, 0.3²) given the hidden state h: mean and spread come back."""
    head = DiffusionHead(
        1,
        1,
        width=32,
        depth=2,
        process=process,  # type: ignore[arg-type]
        shift=shift,
        repeats=8,
    )
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(400):
        hidden = torch.randint(-1, 2, (64, 4, 1)).float()
        target = 2 * hidden + 0.3 * torch.randn_like(hidden)
        loss = head.loss(hidden, target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for value in (-1.0, 1.0):
        options = SamplingOptions(diffusion_steps=50)
        drawn = head.sample(torch.full((1, 500, 1), value), options=options)
        assert drawn.mean().item() == pytest.approx(2 * value, abs=0.2)
        assert drawn.std().item() == pytest.approx(0.3, abs=0.15)


def test_a_shift_moves_the_times_towards_noise() -> None:
    head = DiffusionHead(1, 1, width=8, depth=1, process="flow", shift=4.0)
    tokens = torch.zeros(20_000, 1)
    noisy, time, goal = head._corrupt(tokens)
    sigma = time[:, None] / 1000
    torch.testing.assert_close(noisy, sigma * goal)  # of tokens that are 0 the goal is the noise
    assert time.median().item() == pytest.approx(800, abs=10)  # 4 · 0.5 / (1 + 3 · 0.5)
    head.scheduler.set_timesteps(5)
    assert head.scheduler.sigmas[0] == 1
    assert head.scheduler.sigmas[2].item() == pytest.approx(0.8, abs=0.01)


def test_ddpm_has_no_shift() -> None:
    with pytest.raises(UserError, match="flow process"):
        DiffusionHead(1, 1, width=8, depth=1, process="ddpm", shift=2.0)


def test_weights_leave_tokens_out() -> None:
    head = DiffusionHead(4, 2, width=8, depth=1)
    loss = head.loss(torch.randn(1, 3, 4), torch.randn(1, 3, 2), torch.tensor([[1.0, 0, 1]]))
    assert loss[0, 1] == 0
    assert (loss[0, [0, 2]] > 0).all()


def test_squared_cosine_schedule_is_the_published_one() -> None:
    alphas = DiffusionHead(4, 2, width=8, depth=1).alphas_cumprod
    expected = torch.tensor([0.999959, 0.492285, 3.503e-3, 1.554e-4, 2.4e-9])
    torch.testing.assert_close(alphas[[0, 500, 961, 991, 999]], expected, rtol=2e-2, atol=1e-10)


def test_ids_cannot_be_patched() -> None:
    size = Size(dim=8, depth=1, num_heads=1)
    with pytest.raises(ValueError, match="patch must be 1"):
        build_head(TokenSpec("discrete", 8, (1, 1, 1), True), size, DiffusionOptions(), patch=2)


def test_published_head_counts_32_844_816_parameters() -> None:
    with torch.device("meta"):
        head = DiffusionHead(1024, 16, width=1280, depth=3)
    assert sum(p.numel() for p in head.parameters()) == 32_844_816
