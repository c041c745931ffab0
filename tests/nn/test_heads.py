"""The categorical head: filters, losses and draws against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from arvid.contracts import Size, TokenSpec
from arvid.nn.heads import DiffusionOptions, build_head
from arvid.nn.heads.categorical import CategoricalHead, CategoricalSampling, candidates, draw

GREEDY = CategoricalSampling(temperature=0.0)


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
    logits = 2 * torch.randn(6, 200)
    kept = candidates(logits, top_k, top_p).num_kept
    for row, num in zip(logits, kept.tolist(), strict=True):
        assert set(row.topk(num).indices.tolist()) == two_stage_filter(row, top_k, top_p)


@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize("levels", [None, 64], ids=["all unlike", "many alike"])
def test_filter_at_the_size_of_nbps_vocabulary(
    scale: float, levels: int | None, rounding: Callable[..., Any]
) -> None:
    """64,000 ids with top-k 16,000 and top-p 0.9, as the released scripts have it; bf16 makes many logits alike."""
    logits = scale * torch.randn(3, 64_000)
    if levels is not None:
        logits = (logits * levels).round() / levels
    rounding_of_mass = rounding(torch.ones(1), 16_000)["atol"]
    for row, num in zip(logits, candidates(logits, 16_000, 0.9).num_kept.tolist(), strict=True):
        survivors = row[row >= row.topk(16_000).values[-1]]
        mass = survivors.double().softmax(0).sort(descending=True).values.cumsum(0)
        before, through = mass[num - 2 : num].tolist()
        assert before <= 0.9 + rounding_of_mass
        assert through > 0.9 - rounding_of_mass


def test_ties_at_the_kth_logit_stay() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert candidates(logits, top_k=1, top_p=None).num_kept.tolist() == [2]
    drawn = draw(logits.expand(64, -1), CategoricalSampling(top_k=1))
    assert set(drawn.tolist()) == {1, 2}


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log().expand(30_000, 3)
    drawn = draw(logits, CategoricalSampling(), torch.Generator().manual_seed(0))
    shares = drawn.bincount(minlength=3) / 30_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.7]), atol=0.01, rtol=0)


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.randn(6, 9)
    assert torch.equal(draw(logits, GREEDY), logits.argmax(-1))


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
        given, options=CategoricalSampling(temperature=0.0, guidance=2.0), null_hidden=null
    )
    assert drawn.item() == 1  # 0 + 2 · 0.9 beats 1


def test_ids_cannot_be_patched() -> None:
    size = Size(dim=8, depth=1, num_heads=1)
    with pytest.raises(ValueError, match="patch must be 1"):
        build_head(TokenSpec("discrete", 8, (1, 1, 1), True), size, DiffusionOptions(), patch=2)
