"""Categorical head: softmax over the vocabulary, with temperature, top-k and top-p filters.

CPUs would need milliseconds to sort a long row, so there each row is sampled without sorting. GPUs find thresholds for
many rows (see `threshold`), and sort few. B batch, N tokens of a clip, V vocabulary, R = B·N rows of logits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.contracts import SamplingOptions, TokenHead, UserError
from arvid.nn.checkpointing import checkpointed
from arvid.nn.cuda_graph import CudaGraphs, graphs_of, may_capture
from arvid.nn.heads.threshold import draw_kept
from arvid.nn.linear import FEW_ROWS, linear
from arvid.options import option
from arvid.ranges import SHARE, above, at_least

FEW_SORTED = 32
"""Maximum number of rows that GPUs sort. More rows take longer to sort than the kernels of a bisection (estimated)."""
ROWS_AT_ONCE = 256
"""Rows that are filtered at once. With 64,000 logits per row, logits, ids and masses take 330 MB."""
CHECKPOINTED_ROWS = 1024
"""Rows of logits that exist at once with checkpointing. With 64,000 ids they take 260 MB in float32."""
SAMPLE_STRIDE = 31
"""Stride of the subsample in `_kth_largest`. It is coprime to usual numbers of FSQ levels, the digits of ids, so all
levels are in the subsample."""
LONG_ROW = 4096
"""Minimum vocabulary for sampling without sorting; shorter rows are faster to sort."""
ROUNDING = 1e-4
"""If the mass before an id is this close to p, `_draw_of_row` decides by NBP's exact filter (see `candidates`)."""

Row = np.ndarray[tuple[int], np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class CategoricalSampling(SamplingOptions):
    """Sampling options of discrete tokens, applied in the order temperature, top-k, top-p."""

    temperature: float = option(1.0, at_least(0))
    """Discrete tokens: divisor of the logits; 0 is greedy."""
    top_k: int | None = option(None, at_least(1))
    """Discrete tokens: keep the k most likely tokens."""
    top_p: float | None = option(None, above(0, at_most=1))
    """Discrete tokens: then keep a token if the total probability of all more likely ones is at most p."""


class CategoricalHead(TokenHead):
    """Hidden states (B, N, D) -> logits (B, N, V), without bias as in NBP.

    Args:
        dim: model width D.
        vocab_size: vocabulary size V.
        num_other_ids: additional ids in the softmax of the training loss that are never targets and never sampled: the
            text and special ids of NBP's text models. NBP's released code may sample them, and decodes them as id 0.
        label_smoothing: share of the target distribution that is uniform over all ids (1e-4 in MAGVIT).
    """

    options_class: ClassVar[type[SamplingOptions]] = CategoricalSampling
    gradient_checkpointing = False
    """Compute the logits again in the backward pass, `CHECKPOINTED_ROWS` at a time (see `arvid.nn.checkpointing`)."""

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
        self._faults: list[Tensor] = []  # at most one entry; copies of the head share the list

    def loss(
        self,
        hidden: Float[Tensor, "b n d"],
        target: Int[Tensor, "b n"],
    ) -> Float[Tensor, "b n"]:
        """Cross-entropy in nats of each token."""
        rows, ids = hidden.flatten(0, 1), target.flatten()
        if self.gradient_checkpointing:
            parts = zip(rows.split(CHECKPOINTED_ROWS), ids.split(CHECKPOINTED_ROWS), strict=True)
            loss = torch.cat([checkpointed(self._cross_entropy, *part) for part in parts])
        else:
            loss = self._cross_entropy(rows, ids)
        return loss.view(target.shape)

    def _cross_entropy(
        self, hidden: Float[Tensor, "r d"], target: Int[Tensor, " r"]
    ) -> Float[Tensor, " r"]:
        return F.cross_entropy(
            self.logits(hidden).float(),
            target,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )

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
        return self._draw(logits, options, generator)

    def sample_with_confidence(
        self,
        hidden: Float[Tensor, "b n d"],
        *,
        options: SamplingOptions,
        null_hidden: Float[Tensor, "b n d"] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Int[Tensor, "b n"], Float[Tensor, "b n"]]:
        """Sampled ids, and their log-probabilities at temperature 1 without filters."""
        options = CategoricalSampling.of(options)
        logits = self._sound(self._guided(hidden, null_hidden, options))
        ids = self._draw(logits, options, generator)
        chosen = logits.gather(-1, ids[..., None])[..., 0]
        return ids, chosen - logits.logsumexp(-1)

    def _draw(
        self,
        logits: Float[Tensor, "b n v"],
        options: CategoricalSampling,
        generator: torch.Generator | None,
    ) -> Int[Tensor, "b n"]:
        # The graphs are kept with the linear map, which `packed` heads share.
        graphs = graphs_of(self.logits) if logits.is_cuda and may_capture() else None
        return draw(logits.flatten(0, 1), options, generator, graphs).view(logits.shape[:2])

    def take_fault(self) -> bool:
        """Whether ids were sampled from non-finite logits since the last call. Waits for the device.

        On CPUs `draw` raises an error immediately instead.
        """
        found = any(map(bool, self._faults))
        self._faults.clear()
        return found

    def packed(self) -> CategoricalHead:
        """A copy of the head for sampling with constant weights.

        On CPUs it has a second copy of the weights in oneDNN's blocked layout, which halves the time of a product with
        a few rows. (Otherwise each product reorders the weights first.)
        """
        weight = self.logits.weight.detach()[: self.vocab_size]
        twin = copy.copy(self)
        if _can_pack(weight):
            twin._packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        return twin

    def _guided(
        self, hidden: Tensor, null_hidden: Tensor | None, options: SamplingOptions
    ) -> Tensor:
        """Logits of the ids that may be sampled, with classifier-free guidance, in float32."""
        logits = self._product(hidden).float()
        if null_hidden is None:
            return logits
        null = self._product(null_hidden).float()
        # With log-probabilities instead of logits, the result would differ by a constant per row only.
        return null + options.guidance * (logits - null)

    def _sound(self, logits: Float[Tensor, "b n v"]) -> Float[Tensor, "b n v"]:
        """On GPUs, replace non-finite rows by uniform ones and remember the fault, without waiting for the device."""
        return logits if logits.device.type == "cpu" else self._note_faults(logits)

    def _note_faults(self, logits: Float[Tensor, "b n v"]) -> Float[Tensor, "b n v"]:
        bad = ~logits.amax(-1, keepdim=True).isfinite()  # amax propagates NaN
        self._faults[:] = [bad.any() | before for before in self._faults] or [bad.any()]
        return logits.masked_fill(bad, 0.0)

    def _product(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n v"]:
        weight = self.logits.weight[: self.vocab_size]
        # For one or two rows `linear` is faster. Under autocast the product must have autocast's type.
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
    graphs: CudaGraphs | None = None,
) -> Int[Tensor, " r"]:
    """Sample an id for each row, after temperature, top-k and top-p (see `candidates`).

    On CPUs, raises UserError for non-finite logits. On GPUs the check would wait for the device: see `take_fault`.
    `graphs` capture the filters.
    """
    logits = logits.detach()
    if logits.device.type == "cpu" and not np.isfinite(logits.numpy().max(-1)).all():
        raise UserError(
            "The network's logits are not finite. Use a wider floating-point type, or check its training."
        )
    long_on_cpu = logits.device.type == "cpu" and logits.shape[-1] > LONG_ROW
    if options.temperature == 0:  # torch's argmax takes ten times as long on CPUs
        return torch.from_numpy(logits.numpy().argmax(-1)) if long_on_cpu else logits.argmax(-1)
    if options.temperature != 1:
        logits = logits / options.temperature
    if long_on_cpu:
        # One number of torch's generator seeds numpy's, so results still follow from `generator`.
        seed = int(torch.randint(2**62, (), generator=generator))
        uniform = np.random.Generator(np.random.SFC64(seed)).random
        ids = [_draw_of_row(r, options.top_k, options.top_p, uniform) for r in logits.numpy()]
        return torch.tensor(ids)
    if options.top_k is None and options.top_p is None:
        mass = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
        return _sample_index(mass, mass[:, -1:], generator)
    parts = logits.split(ROWS_AT_ONCE)
    if logits.device.type == "cpu" or len(logits) <= FEW_SORTED:
        return torch.cat([_draw_of_sorted(part, options, generator) for part in parts])
    return torch.cat([_draw_by_threshold(part, options, generator, graphs) for part in parts])


def _draw_by_threshold(
    logits: Float[Tensor, "r v"],
    options: CategoricalSampling,
    generator: torch.Generator | None,
    graphs: CudaGraphs | None,
) -> Int[Tensor, " r"]:
    shape = (len(logits), 1)
    uniform = torch.rand(shape, dtype=torch.float64, device=logits.device, generator=generator)
    drawn = partial(draw_kept, top_k=options.top_k, top_p=options.top_p)
    if graphs is None:
        return drawn(logits, uniform)
    return graphs((options.top_k, options.top_p), drawn, logits, uniform).clone()


def _sample_index(
    mass: Float[Tensor, "r v"], total: Float[Tensor, "r 1"], generator: torch.Generator | None
) -> Int[Tensor, " r"]:
    """Sample indices by inverse CDF: the first index whose cumulated mass reaches a uniform share of `total`.

    `total` is one of the cumulated masses, so later indices have probability 0.
    """
    uniform = torch.rand(total.shape, dtype=mass.dtype, device=mass.device, generator=generator)
    return torch.searchsorted(mass, uniform * total)[:, 0]


@dataclass(frozen=True)
class Candidates:
    """The ids of each row that remain after top-k and top-p."""

    ids: Int[Tensor, "r v"]
    """All ids, most likely first; ids of equal logits in any order."""
    mass: Float[Tensor, "r v"]
    """Cumulated probabilities, normalised over the top k, in float64."""
    num_kept: Int[Tensor, " r"]
    """Number of first ids that remain."""


def candidates(logits: Float[Tensor, "r v"], top_k: int | None, top_p: float | None) -> Candidates:
    """The ids that remain, by sorting.

    Top-k: the ids whose logit is at least the k-th largest. Top-p: of these, ids with mass at most p before them.

    The arithmetic is that of NBP's filter, which rounds the cumulated mass to float32, so the sets are exactly equal.
    If several ids share the k-th logit, all of them stay.
    """
    values, ids = _sorted(logits)
    kth = values[:, min(top_k or values.shape[-1], values.shape[-1]) - 1, None]
    kept = values >= kth
    mass = values.where(kept, -math.inf).softmax(-1).cumsum(-1, dtype=torch.float64)
    if top_p is not None and top_p < 1:
        # Shifted by one: whether an id stays depends on the mass before it, so the first id always stays.
        kept[:, 1:] &= mass[:, :-1].float() <= top_p
    return Candidates(ids, mass, kept.sum(-1))


def _sorted(logits: Float[Tensor, "r v"]) -> tuple[Float[Tensor, "r v"], Int[Tensor, "r v"]]:
    """Logits in decreasing order, and their ids. On CPUs numpy's vectorised sort takes a third of torch's time."""
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
    # Mass of the last kept id: the inverse CDF over [0, most] never reaches the ids behind it.
    most = kept.mass.gather(-1, kept.num_kept[:, None] - 1)
    rank = _sample_index(kept.mass, most, generator)
    return kept.ids.gather(-1, rank[:, None])[:, 0]


def _draw_of_row(
    row: Row, top_k: int | None, top_p: float | None, uniform: Callable[[], float]
) -> int:
    """Sample one of `candidates` of a row without sorting it.

    Rejection sampling: draw from the top k until the id is also in the nucleus (top p). This gives the same
    distribution as to filter first, because the nucleus is a subset of the top k. Whether an id is in the nucleus
    follows from the mass of all larger logits, which needs a sum, but no order. Of equal logits, earlier ids count as
    more likely.
    """
    values = row  # logits of the top k, in the order of ids
    if top_k is not None and top_k < len(row):
        # np.compress takes a quarter of the time of indexing by a mask.
        values = np.compress(row >= _kth_largest(row, top_k), row)
    weights = np.exp(values - values.max()).astype(np.float64)  # unnormalised probabilities
    mass = torch.from_numpy(weights).cumsum(0).numpy()  # numpy's cumsum takes three times as long
    while True:
        index = np.searchsorted(mass, uniform() * mass[-1])  # inverse CDF
        value = values[index]
        num_equal_before = np.count_nonzero(values[:index] == value)
        # Not a dot product with the mask: it would use BLAS, whose threads and torch's wait for each other.
        larger = np.compress(values > value, weights).sum()
        # Probability of all more likely ids: those with larger logits, and earlier ones with an equal logit.
        before = (larger + num_equal_before * weights[index]) / mass[-1]
        inside = top_p is None or before <= top_p
        if top_p is not None and abs(before - top_p) < ROUNDING:
            # Too close for this sum, which has another rounding than NBP's filter: sort, and compare ranks.
            rank = np.count_nonzero(row > value) + num_equal_before
            inside = rank < int(candidates(torch.from_numpy(row)[None], top_k, top_p).num_kept)
        if inside:
            # `index` counts within the top k; find the id in the whole row by value and order among equals.
            return int(np.flatnonzero(row == value)[num_equal_before])


def _kth_largest(row: Row, k: int) -> np.floating[Any]:
    """The k-th largest value of a row.

    On x86 numpy's vectorised partition is fastest. Elsewhere it takes four times as long as this: take bounds from a
    subsample of the row, and partition only the values between them.
    """
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return np.partition(row, len(row) - k)[len(row) - k]
    sample = row[::SAMPLE_STRIDE]
    # The value has the quantile `share`. In a sample its rank has a binomial distribution: take 3 standard deviations.
    share = 1 - k / len(row)
    margin = 3 * math.sqrt(share * (1 - share) * len(sample)) + 1
    low = max(int(share * len(sample) - margin), 0)
    high = min(int(share * len(sample) + margin), len(sample) - 1)
    bounds = np.partition(sample, [low, high])
    above = np.count_nonzero(row > bounds[high])
    between = np.compress((row >= bounds[low]) & (row <= bounds[high]), row)
    rank = k - int(above)
    if not 1 <= rank <= len(between):  # rarely, the value is outside the bounds
        between, rank = row, k
    return np.partition(between, len(between) - rank)[len(between) - rank]
