"""How much of a metric is due to the order of prediction, the token type, their interaction, and the seed.

A two-way analysis of variance of the cells (order, token type), each with one value per training seed. Shares of the
variance are noise-corrected (omega squared, Hays 1963): a plain share of the sums of squares counts noise as effect,
which matters with two or three seeds. Intervals come from a bootstrap of the residuals of all cells. With one seed per
cell the metric's own standard errors replace the residuals, and the share of the seed stays unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from arvid.contracts import UserError

RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Measured:
    """One training's value of a metric and its standard error over clips (0 if unknown)."""

    value: float
    standard_error: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign is beyond doubt at 95 %."""
        return self.low > 0 or self.high < 0


class Effects:
    """The analysis of one metric.

    Args:
        cells: (order, token type) -> one value per seed. Every order needs every token type, with equally many seeds.

    Raises UserError if cells are missing or have unequal numbers of seeds, and for fewer than two orders or types.
    """

    def __init__(self, cells: Mapping[tuple[str, str], Sequence[Measured]]) -> None:
        self.orders = list(dict.fromkeys(order for order, _ in cells))
        self.types = list(dict.fromkeys(kind for _, kind in cells))
        counts = {len(found) for found in cells.values()}
        if len(cells) != len(self.orders) * len(self.types) or len(counts) != 1:
            raise UserError(
                "Effects need every order with every token type, and equally many seeds."
            )
        if min(len(self.orders), len(self.types)) < 2:
            raise UserError("Effects need at least two orders and two token types.")
        table = [[cells[order, kind] for kind in self.types] for order in self.orders]
        self.values = np.array([[[m.value for m in cell] for cell in row] for row in table])
        """(orders, types, seeds)"""
        errors = np.array([[[m.standard_error for m in cell] for cell in row] for row in table])
        self.num_seeds = self.values.shape[2]
        self._errors = errors[:, :, 0]

    @cached_property
    def shares(self) -> dict[str, Estimate]:
        """Share of the variance by source: `order`, `token type`, `interaction` and, with several seeds, `seed`."""
        found = _shares(self.values, self._noise)
        resampled = [_shares(sample, self._noise) for sample in self._resampled]
        return {
            name: _estimate(value, [sample[name] for sample in resampled])
            for name, value in found.items()
            if name != "seed" or self.num_seeds > 1
        }

    def type_difference(self, order: str | None = None) -> Estimate:
        """The first token type's mean minus the second's, for one order or averaged over all."""
        rows = slice(None) if order is None else [self.orders.index(order)]
        return self.contrast(lambda means: float((means[rows, 0] - means[rows, 1]).mean()))

    def order_difference(self, first: str, second: str, kind: str | None = None) -> Estimate:
        """One order's mean minus another's, for one token type or averaged over all."""
        columns = slice(None) if kind is None else [self.types.index(kind)]
        a, b = self.orders.index(first), self.orders.index(second)
        return self.contrast(lambda means: float((means[a, columns] - means[b, columns]).mean()))

    def contrast(self, of: Callable[[np.ndarray], float]) -> Estimate:
        """A function of the cell means (orders, types)."""
        return _estimate(
            of(self.values.mean(2)), [of(sample.mean(2)) for sample in self._resampled]
        )

    def differ(self, a: tuple[str, str], b: tuple[str, str]) -> bool:
        """Whether two cells (order, token type) differ significantly (95 %)."""
        (i, j), (k, m) = [
            (self.orders.index(order), self.types.index(kind)) for order, kind in (a, b)
        ]
        return self.contrast(lambda means: float(means[i, j] - means[k, m])).excludes_zero

    @cached_property
    def _noise(self) -> float:
        """Variance of one training's value: between seeds, or with one seed that of the measurement."""
        if self.num_seeds > 1:
            return float(self.values.var(2, ddof=1).mean())
        return float((self._errors**2).mean())

    @cached_property
    def _resampled(self) -> list[np.ndarray]:
        """Values as other trainings could have given them."""
        generator = np.random.default_rng(0)
        means = self.values.mean(2, keepdims=True)
        if self.num_seeds == 1:
            noise = generator.standard_normal((RESAMPLES, *self.values.shape))
            return list(means + noise * self._errors[..., None])
        # the residuals of n values have (n - 1) / n of the variance
        residuals = (self.values - means) * np.sqrt(self.num_seeds / (self.num_seeds - 1))
        drawn = generator.choice(residuals.ravel(), (RESAMPLES, *self.values.shape))
        return list(means + drawn)


def _shares(values: np.ndarray, noise: float) -> dict[str, float]:
    """Shares of the variance by source, between 0 and 1.

    `noise` estimates the variance of a single value if there is one seed; with several it comes from the values.
    """
    orders, types, seeds = values.shape
    means, grand = values.mean(2), values.mean()
    of_order, of_type = means.mean(1) - grand, means.mean(0) - grand
    rest = means - grand - of_order[:, None] - of_type
    squares = {
        "order": (seeds * types * (of_order**2).sum(), orders - 1),
        "token type": (seeds * orders * (of_type**2).sum(), types - 1),
        "interaction": (seeds * (rest**2).sum(), (orders - 1) * (types - 1)),
    }
    residual = float(((values - means[..., None]) ** 2).sum())
    if seeds > 1:
        noise = residual / (orders * types * (seeds - 1))
    total = sum(square for square, _ in squares.values()) + residual
    # expected sum of squares of a source without effect: degrees of freedom times the noise
    found = {name: max(square - free * noise, 0.0) for name, (square, free) in squares.items()}
    whole = max(total + (noise if seeds > 1 else 0.0), 1e-12)
    shares = {name: float(square / whole) for name, square in found.items()}
    return {**shares, "seed": max(1.0 - sum(shares.values()), 0.0)}


def _estimate(value: float, resampled: Sequence[float]) -> Estimate:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def sentences(
    effects: Effects, *, metric: str, higher_is_better: bool, unit: str = ""
) -> list[str]:
    """What the analysis supports, in plain words. A difference is significant if its 95 % interval excludes 0."""
    return [
        _share_sentence(effects, metric),
        _type_sentence(effects, metric, higher_is_better, unit),
        *_interaction_sentences(effects, higher_is_better),
        _best_sentence(effects, metric, higher_is_better, unit),
    ]


def _share_sentence(effects: Effects, metric: str) -> str:
    parts = [
        f"{_NAMES[name]} {_percent(share.value)} ({_percent(share.low)} to {_percent(share.high)})"
        for name, share in effects.shares.items()
    ]
    return f"{metric}, share of the variance between trainings: {', '.join(parts)}."


_NAMES = {
    "order": "order",
    "token type": "token type",
    "interaction": "their interaction",
    "seed": "seed",
}


def _type_sentence(effects: Effects, metric: str, higher: bool, unit: str) -> str:
    found, (first, second) = effects.type_difference(), effects.types[:2]
    if not found.excludes_zero:
        return (
            f"Averaged over the orders, the token types do not differ significantly in {metric}: "
            f"{first} minus {second} is {_interval(found, unit)}."
        )
    better, worse = (first, second) if (found.value > 0) == higher else (second, first)
    size = _absolute(found)
    return (
        f"Averaged over the orders, {better} tokens are better than {worse} tokens in {metric}, by "
        f"{_interval(size, unit)}."
    )


def _interaction_sentences(effects: Effects, higher: bool) -> list[str]:
    """Orders that are significantly better with one token type, unless it is the same for all."""
    wins: dict[str, list[str]] = {}
    for order in effects.orders:
        found = effects.type_difference(order)
        kind = effects.types[0 if (found.value > 0) == higher else 1]
        wins.setdefault(kind if found.excludes_zero else "", []).append(order)
    if len(wins) == 1 or not any(wins):  # all orders agree, or nothing is decided
        return []
    clear = [f"{', '.join(orders)} with {kind} tokens" for kind, orders in wins.items() if kind]
    others = f" No significant difference: {', '.join(wins[''])}." if "" in wins else ""
    return [f"Better with one token type than with the other: {'; '.join(clear)}.{others}"]


def _best_sentence(effects: Effects, metric: str, higher: bool, unit: str) -> str:
    means = effects.values.mean(2)
    sign = 1 if higher else -1
    ranked = sorted(
        ((order, kind) for order in effects.orders for kind in effects.types),
        key=lambda cell: -sign * means[effects.orders.index(cell[0]), effects.types.index(cell[1])],
    )
    first = ranked[0]
    unsure = [cell for cell in ranked[1:] if not effects.differ(first, cell)]
    name = " on ".join(first)
    if not unsure:
        return f"The best combination in {metric} is {name} tokens, significantly better than all others (95 %)."
    others = ", ".join(" on ".join(cell) for cell in unsure)
    return f"The best combination in {metric} is {name} tokens; not significantly worse (95 %): {others}."


def _absolute(found: Estimate) -> Estimate:
    if found.value >= 0:
        return found
    return Estimate(-found.value, -found.high, -found.low)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _interval(found: Estimate, unit: str) -> str:
    unit = f" {unit}" if unit else ""
    value, low, high = map(_two_digits, (found.value, found.low, found.high))
    return f"{value}{unit} (95 % interval {low} to {high})"


def _two_digits(value: float) -> str:
    """Two significant digits; whole numbers from 10 on: 0.037, 2.1, 213."""
    return f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"
