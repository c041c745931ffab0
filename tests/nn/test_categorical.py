"""Long rows of logits on a CPU, which are drawn from without sorting them, and products with few rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from arvid.contracts import UserError
from arvid.nn.heads import categorical
from arvid.nn.heads.categorical import CategoricalHead, CategoricalSampling, candidates, draw
from arvid.nn.heads.threshold import draw_kept, kept_ids

LENGTH = 5000


def rows(kind: str) -> Tensor:
    """Logits (3, V): smooth, with many ties, peaked, or all the same."""
    logits = torch.randn(3, LENGTH, generator=torch.Generator().manual_seed(0))
    return {
        "smooth": logits,
        "tied": logits.bfloat16().float(),
        "peaked": 8 * logits,
        "equal": torch.zeros_like(logits),
    }[kind]


@pytest.mark.parametrize("kind", ["smooth", "tied", "peaked", "equal"])
@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(40, 0.5), (40, None), (None, 0.02), (None, 0.9), (3, 0.999), (1, 0.9), (LENGTH, 0.3)],
)
def test_thresholds_keep_what_sorting_keeps(
    kind: str, top_k: int | None, top_p: float | None
) -> None:
    """Of equal logits the sort may keep any, bisection keeps the first."""
    logits = torch.cat([rows(kind), -rows(kind)])
    sorted_first, (kept, _) = candidates(logits, top_k, top_p), kept_ids(logits, top_k, top_p)
    assert kept.sum(-1).tolist() == sorted_first.num_kept.tolist()
    for row, mask, ids, num in zip(
        logits, kept, sorted_first.ids, sorted_first.num_kept, strict=True
    ):
        assert torch.equal(row[mask].sort().values, row[ids[:num]].sort().values)
        lowest = row[mask].min()
        places = (row == lowest).nonzero()[:, 0]
        assert torch.equal(mask[places].int(), mask[places].int().sort(descending=True).values)


def test_thresholds_draw_by_probability() -> None:
    logits = torch.tensor([[0.0, 2.0, -0.0, 1.0, -5.0, 1.0]]).expand(20_000, -1)
    uniform = torch.rand(
        len(logits), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    uniform[0] = 0.0
    drawn = draw_kept(logits, uniform, top_k=5, top_p=0.8)
    weights = torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0, 1.0]).exp() * torch.tensor([0, 1, 0, 1, 0, 1])
    shares = drawn.bincount(minlength=6) / len(drawn)
    torch.testing.assert_close(shares, weights / weights.sum(), atol=0.015, rtol=0)


@pytest.mark.parametrize("kind", ["smooth", "tied", "peaked", "equal"])
@pytest.mark.parametrize("k", [1, 7, 1250, LENGTH - 1])
@pytest.mark.parametrize("instructions", ["AVX2", "DEFAULT"])
def test_the_kth_largest_is_exact(
    monkeypatch: pytest.MonkeyPatch, instructions: str, kind: str, k: int
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    for row in rows(kind):
        assert categorical._kth_largest(row.numpy(), k) == row.topk(k).values[-1]


@pytest.mark.parametrize("kind", ["smooth", "tied", "peaked", "equal"])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(40, 0.5), (40, None), (None, 0.02), (3, 0.999), (1, 0.9)]
)
def test_only_candidates_are_drawn_and_each_of_them(
    kind: str, top_k: int | None, top_p: float | None
) -> None:
    """A few are left in each case, but where many are tied with the last of them."""
    logits = rows(kind)[:1]
    kept = candidates(logits, top_k, top_p)
    num = int(kept.num_kept)
    options = CategoricalSampling(top_k=top_k, top_p=top_p)
    drawn = draw(logits.expand(300, -1), options, torch.Generator().manual_seed(1))
    values = logits[0][kept.ids[0, :num]]  # which of equal ids are kept is open
    assert set(logits[0][drawn].tolist()) <= set(values.tolist())
    assert len(drawn.unique()) <= num
    if num <= 30 and kind != "peaked":
        assert len(drawn.unique()) == num


def leading_to(wanted: int, values: np.ndarray) -> Callable[[], float]:
    """Random numbers of which the first leads to a wanted id, and the next one to the likeliest."""
    weights = np.exp(values - values.max()).astype(np.float64)
    middles = (weights.cumsum() - weights / 2) / weights.sum()
    numbers = iter(middles[[wanted, values.argmax()]].tolist())
    return lambda: next(numbers)


@pytest.mark.parametrize(("scale", "top_p"), [(0.02, 0.95), (0.3, 0.9), (3.0, 0.5)])
def test_the_last_candidate_is_drawn_and_the_next_id_is_not(scale: float, top_p: float) -> None:
    """With 64,000 ids two neighbours differ by less than sums in float32 are exact to."""
    for seed in (0, 4):  # of the second case 4 is decided by rounding
        logits = scale * torch.randn(1, 64_000, generator=torch.Generator().manual_seed(seed))
        kept = candidates(logits, None, top_p)
        num, row = int(kept.num_kept), logits[0].numpy()
        for rank in (num - 1, num):
            wanted = int(kept.ids[0, rank])
            drawn = categorical._draw_of_row(row, None, top_p, leading_to(wanted, row))
            assert (drawn == wanted) is (rank < num)


def test_long_rows_follow_the_probabilities() -> None:
    logits = torch.full((LENGTH,), -20.0)
    logits[[17, 4000, 4999]] = torch.tensor([0.2, 0.5, 0.3]).log()
    options = CategoricalSampling(top_k=3, top_p=0.75)  # 0.5, then 0.3
    drawn = draw(logits.expand(1500, -1), options, torch.Generator().manual_seed(0))
    shares = drawn.bincount(minlength=LENGTH) / len(drawn)
    torch.testing.assert_close(
        shares[[17, 4000, 4999]], torch.tensor([0.0, 0.625, 0.375]), atol=0.04, rtol=0
    )


@pytest.mark.parametrize("length", [100, LENGTH])
@pytest.mark.parametrize("options", [{}, {"top_k": 20}, {"top_k": 20, "top_p": 0.9}])
def test_a_seed_decides(length: int, options: dict[str, float]) -> None:
    logits = torch.randn(16, length)

    def drawn(seed: int) -> list[int]:
        chosen = CategoricalSampling(temperature=0.7, **options)  # type: ignore[arg-type]
        return draw(logits, chosen, torch.Generator().manual_seed(seed)).tolist()

    assert drawn(0) == drawn(0) != drawn(1)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("length", [20, LENGTH])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_k", [None, 5])
def test_logits_that_are_not_finite_are_refused(
    broken: float, length: int, temperature: float, top_k: int | None
) -> None:
    logits = torch.randn(1, length)
    logits[0, 7] = broken
    with pytest.raises(UserError, match="not finite"):
        draw(logits, CategoricalSampling(temperature=temperature, top_k=top_k))


def test_many_rows_are_sorted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(categorical, "ROWS_AT_ONCE", 3)
    logits = torch.randn(8, 50)
    assert torch.equal(draw(logits, CategoricalSampling(top_k=1)), logits.argmax(-1))


@pytest.mark.parametrize("num_rows", [1, 2, 3, 40])
def test_packed_weights_give_the_same_logits(num_rows: int, rounding: Callable[..., Any]) -> None:
    head = CategoricalHead(16, 700, num_other_ids=9)
    hidden = torch.randn(1, num_rows, 16)
    with torch.no_grad():
        expected = head.logits(hidden)[..., :700]
        found = head.packed()._product(hidden)
        torch.testing.assert_close(found, expected, **rounding(expected, 16))
        low = head.bfloat16().packed()._product(hidden.bfloat16())
    tolerance = rounding(expected, 1, torch.bfloat16)
    torch.testing.assert_close(low.float(), expected, **tolerance)


def test_packing_leaves_the_head_alone() -> None:
    head = CategoricalHead(16, 64)
    twin = head.packed()
    hidden, greedy = torch.randn(2, 3, 16), CategoricalSampling(temperature=0.0)
    before = twin.sample(hidden, options=greedy)
    with torch.no_grad():
        head.logits.weight.neg_()
    assert torch.equal(head.sample(hidden, options=greedy), head.logits(hidden).argmax(-1))
    assert not torch.equal(head.sample(hidden, options=greedy), before)
    assert list(head.state_dict()) == ["logits.weight"]
