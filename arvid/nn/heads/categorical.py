"""Softmax over the vocabulary, with temperature, top-k and top-p filters.

GPUs sort all rows and never wait for the host. CPUs would sort a long row for milliseconds, so there each is drawn from
without sorting it. B batch, N tokens of it, V vocabulary, R = B·N rows of logits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.contracts import SamplingOptions, TokenHead, UserError
from arvid.nn.linear import FEW_ROWS, linear
from arvid.options import option
from arvid.ranges import SHARE, above, at_least

SORTED_ROWS = 256
"""Rows that are sorted at once: 64,000 logits of each with ids and masses are 330 MB."""
SAMPLE_STRIDE = 31
"""No multiple of a number of levels: ids of scalar quantisation are digits of their channels' levels."""
LONG_ROW = 4096
"""Shorter rows are sorted sooner than looked at one by one."""
ROUNDING = 1e-4
"""Where the mass before an id is so close to p, float32 sums in falling order decide, as in NBP's filter."""

Row = np.ndarray[tuple[int], np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class CategoricalSampling(SamplingOptions):
    """Sampling options of discrete tokens. Temperature comes first, then top-k, then top-p."""

    temperature: float = option(1.0, at_least(0))
    """Discrete tokens: what logits are divided by; 0 is greedy."""
    top_k: int | None = option(None, at_least(1))
    """Discrete tokens: keep the k likeliest ones."""
    top_p: float | None = option(None, above(0, at_most=1))
    """Discrete tokens: of these keep the smallest set whose probability mass before each token is at most p."""


class CategoricalHead(TokenHead):
    """Hidden states (B, N, D) -> logits (B, N, V), without bias (as NBP has it).

    Args:
        dim: D.
        vocab_size: V.
        num_other_ids: ids behind these that the softmax runs over too but that are never targets nor drawn: the text
            and special ids of NBP's text models. Its released code may draw them, and decodes them as id 0.
        label_smoothing: share of the target distribution that is spread evenly over all ids (1e-4 in MAGVIT).
    """

    options_class: ClassVar[type[SamplingOptions]] = CategoricalSampling

    def __init__(
        self, dim: int, vocab_size: int, num_other_ids: int = 0, *, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        at_least(0).require(num_other_ids=num_other_ids)
        SHARE.require(label_smoothing=label_smoothing)
        self.vocab_size = vocab_size
        self.label_smoothing = label_smoothing
        self.logits = nn.Linear(dim, vocab_size + num_other_ids, bias=False)
        self._packed: Tensor | None = None
        self._faults: list[Tensor] = []  # at most one; copies share the list

    def loss(
        self,
        hidden: Float[Tensor, "b n d"],
        target: Int[Tensor, "b n"],
        weight: Float[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Cross-entropy in nats of each token, times its weight."""
        logits = self.logits(hidden).float()
        loss = F.cross_entropy(
            logits.flatten(0, 1),
            target.flatten(),
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        loss = loss.view(target.shape)
        return loss if weight is None else loss * weight

    def sample(
        self,
        hidden: Float[Tensor, "b n d"],
        *,
        options: SamplingOptions,
        null_hidden: Float[Tensor, "b n d"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "b n"]:
        options = CategoricalSampling.of(options)
        logits = self._sound(self._guided(hidden, null_hidden, options))
        return draw(logits.flatten(0, 1), options, generator).view(hidden.shape[:2])

    def sample_with_confidence(
        self,
        hidden: Float[Tensor, "b n d"],
        *,
        options: SamplingOptions,
        null_hidden: Float[Tensor, "b n d"] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Int[Tensor, "b n"], Float[Tensor, "b n"]]:
        """Ids and the logarithm of each one's probability, before the filters and at temperature 1."""
        options = CategoricalSampling.of(options)
        logits = self._sound(self._guided(hidden, null_hidden, options))
        ids = draw(logits.flatten(0, 1), options, generator).view(hidden.shape[:2])
        drawn = logits.gather(-1, ids[..., None])[..., 0]
        return ids, drawn - logits.logsumexp(-1)

    def take_fault(self) -> bool:
        """Whether ids were drawn from logits that are not finite since this was last asked. Waits for the device.

        On CPUs `draw` raises an error at once.
        """
        found = any(map(bool, self._faults))
        self._faults.clear()
        return found

    def packed(self) -> CategoricalHead:
        """The same for sampling, while weights do not change: on CPUs with a copy of them in the order in which a
        product with a few rows reads them, which halves its time. (Otherwise each product begins with such a copy.)"""
        weight = self.logits.weight.detach()[: self.vocab_size]
        twin = copy.copy(self)
        if _can_pack(weight):
            twin._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        return twin

    def _guided(
        self, hidden: Tensor, null_hidden: Tensor | None, options: SamplingOptions
    ) -> Tensor:
        """Logits of the ids that may be drawn, in float32."""
        logits = self._product(hidden).float()
        if null_hidden is None:
            return logits
        null = self._product(null_hidden).float()
        return null + options.guidance * (logits - null)

    def _sound(self, logits: Float[Tensor, "b n v"]) -> Float[Tensor, "b n v"]:
        """On GPUs, which must not be waited for here: rows that are not finite become uniform, and are noted."""
        return logits if logits.device.type == "cpu" else self._note_faults(logits)

    def _note_faults(self, logits: Float[Tensor, "b n v"]) -> Float[Tensor, "b n v"]:
        bad = ~logits.amax(-1, keepdim=True).isfinite()
        self._faults[:] = [bad.any() | before for before in self._faults] or [bad.any()]
        return logits.masked_fill(bad, 0.0)

    def _product(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n v"]:
        weight = self.logits.weight[: self.vocab_size]
        few = x.numel() <= FEW_ROWS * x.shape[-1]
        if few or self._packed is None or not _can_pack(x) or torch.is_autocast_enabled("cpu"):
            return linear(x, weight)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")
        return out


def _can_pack(x: Tensor) -> bool:
    return (
        x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    )


def draw(
    logits: Float[Tensor, "r v"],
    options: CategoricalSampling,
    generator: torch.Generator | None = None,
) -> Int[Tensor, " r"]:
    """An id for each row: temperature, then top-k, then top-p (see `candidates`), then one of those that are left.

    Raises UserError for logits that are not finite, on CPUs: GPUs would have to be waited for (see `take_fault`).
    """
    logits = logits.detach()
    if logits.device.type == "cpu" and not np.isfinite(logits.numpy().max(-1)).all():
        raise UserError(
            "The network's logits are not finite. Compute in a wider type, or look at its training."
        )
    long_on_cpu = logits.device.type == "cpu" and logits.shape[-1] > LONG_ROW
    if options.temperature == 0:  # torch's argmax takes ten times as long on CPUs
        return torch.from_numpy(logits.numpy().argmax(-1)) if long_on_cpu else logits.argmax(-1)
    if options.temperature != 1:
        logits = logits / options.temperature
    if long_on_cpu:
        seed = int(torch.randint(2**62, (), generator=generator))
        uniform = np.random.Generator(np.random.SFC64(seed)).random
        ids = [_draw_of_row(r, options.top_k, options.top_p, uniform) for r in logits.numpy()]
        return torch.tensor(ids)
    if options.top_k is None and options.top_p is None:
        mass = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
        return _place(mass, mass[:, -1:], generator)
    parts = logits.split(SORTED_ROWS)
    return torch.cat([_draw_of_sorted(part, options, generator) for part in parts])


def _place(
    mass: Float[Tensor, "r v"], total: Float[Tensor, "r 1"], generator: torch.Generator | None
) -> Int[Tensor, " r"]:
    """Where a uniform share of the total, itself one of the cumulated masses, is reached."""
    uniform = torch.rand(total.shape, dtype=mass.dtype, device=mass.device, generator=generator)
    return torch.searchsorted(mass, uniform * total)[:, 0]


@dataclass(frozen=True)
class Candidates:
    """What top-k and top-p leave of each row."""

    ids: Int[Tensor, "r v"]
    """All ids, the likeliest first; equal ones in any order."""
    mass: Float[Tensor, "r v"]
    """Cumulated probabilities among the top k, in float64."""
    num_kept: Int[Tensor, " r"]
    """How many of the first ids may be drawn."""


def candidates(logits: Float[Tensor, "r v"], top_k: int | None, top_p: float | None) -> Candidates:
    """The ids not below the k-th logit, and of these each whose likelier ones hold at most mass p.

    The arithmetic is that of NBP's filter, which rounds cumulated mass to float32, so the set is the same to the last
    id. Several ids may share the k-th logit: all of them stay.
    """
    values, ids = _sorted(logits)
    kth = values[:, min(top_k or values.shape[-1], values.shape[-1]) - 1, None]
    kept = values >= kth
    mass = values.where(kept, -math.inf).softmax(-1).cumsum(-1, dtype=torch.float64)
    if top_p is not None and top_p < 1:
        kept[:, 1:] &= mass[:, :-1].float() <= top_p
    return Candidates(ids, mass, kept.sum(-1))


def _sorted(logits: Float[Tensor, "r v"]) -> tuple[Float[Tensor, "r v"], Int[Tensor, "r v"]]:
    """Falling logits and their ids. On CPUs numpy sorts with vector instructions, in a third of torch's time."""
    if logits.device.type != "cpu":
        values, ids = logits.sort(dim=-1, descending=True)
    else:
        ids = torch.from_numpy(np.argsort(-logits.numpy(), axis=-1))
        values = logits.gather(-1, ids)
    return values, ids


def _draw_of_sorted(
    logits: Tensor, options: CategoricalSampling, generator: torch.Generator | None
) -> Tensor:
    kept = candidates(logits, options.top_k, options.top_p)
    most = kept.mass.gather(-1, kept.num_kept[:, None] - 1)
    rank = _place(kept.mass, most, generator)
    return kept.ids.gather(-1, rank[:, None])[:, 0]


def _draw_of_row(
    row: Row, top_k: int | None, top_p: float | None, uniform: Callable[[], float]
) -> int:
    """Draws from the top k until what comes out is in the nucleus too: one of `candidates`, without sorting.

    Of equal logits the first count as likelier.
    """
    values = row
    if top_k is not None and top_k < len(row):
        values = np.compress(
            row >= _kth_largest(row, top_k), row
        )  # a mask as index: four times as long
    weights = np.exp(values - values.max()).astype(np.float64)
    mass = torch.from_numpy(weights).cumsum(0).numpy()  # numpy's takes three times as long
    while True:
        place = np.searchsorted(mass, uniform() * mass[-1])
        value = values[place]
        number = np.count_nonzero(values[:place] == value)
        # A product would go to BLAS, whose threads and torch's wait for each other.
        above = np.compress(values > value, weights).sum()
        before = (above + number * weights[place]) / mass[-1]
        inside = top_p is None or before <= top_p
        if top_p is not None and abs(before - top_p) < ROUNDING:
            rank = np.count_nonzero(row > value) + number
            inside = rank < int(candidates(torch.from_numpy(row)[None], top_k, top_p).num_kept)
        if inside:
            return int(np.flatnonzero(row == value)[number])


def _kth_largest(row: Row, k: int) -> np.floating[Any]:
    """By numpy's vector instructions on x86. Elsewhere that takes four times as long as to look only between two values
    that a sample of the row suggests, or at the whole row if it is not there."""
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return np.partition(row, len(row) - k)[len(row) - k]
    sample = row[::SAMPLE_STRIDE]
    share = 1 - k / len(row)
    margin = 3 * math.sqrt(share * (1 - share) * len(sample)) + 1
    low = max(int(share * len(sample) - margin), 0)
    high = min(int(share * len(sample) + margin), len(sample) - 1)
    bounds = np.partition(sample, [low, high])
    above = np.count_nonzero(row > bounds[high])
    between = np.compress((row >= bounds[low]) & (row <= bounds[high]), row)
    rank = k - int(above)
    if not 1 <= rank <= len(between):
        between, rank = row, k
    return np.partition(between, len(between) - rank)[len(between) - rank]
