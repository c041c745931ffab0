"""Formats numbers for tables: few digits, and the same number of decimals in a column."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def decimals_for(values: Sequence[float]) -> int:
    """Number of decimals (0 to 4) that gives the smallest nonzero value about three digits."""
    sizes = [abs(v) for v in values if v]
    if not sizes:
        return 0
    return min(max(2 - math.floor(math.log10(min(sizes))), 0), 4)


def fixed(value: float, decimals: int) -> str:
    """`value` with this number of decimals, or with one significant digit if it would round to 0."""
    text = f"{value:.{decimals}f}"
    return f"{value:.1g}" if value and not float(text) else text


def with_uncertainty(value: float, uncertainty: float | None, decimals: int) -> str:
    """`value ± uncertainty`, both with this number of decimals; only `value` if the uncertainty is None."""
    if uncertainty is None:
        return fixed(value, decimals)
    return f"{fixed(value, decimals)} ± {fixed(uncertainty, decimals)}"


def prefixed(value: float) -> str:
    """Three digits and an SI prefix: 1234567 is `1.23M`."""
    for size, prefix in _PREFIXES:
        if abs(value) >= 0.9995 * size:  # 999.6 rounds to 1000: show it as 1.00k
            return f"{three_digits(value / size)}{prefix}"
    return three_digits(value)


def alike(values: Sequence[float]) -> Callable[[float], str]:
    """A form for all values of a column: one SI prefix and one number of decimals, two digits for the smallest value.

    If the values span more than four powers of ten, each has its own prefix, by `prefixed`.
    """
    sizes = [abs(v) for v in values if v]
    if not sizes or max(sizes) > 1e4 * min(sizes):
        return prefixed
    size, prefix = next(((s, p) for s, p in _PREFIXES if max(sizes) >= s), (1.0, ""))
    if min(sizes) < 0.01 * size:  # 0.004M is harder to read than 4k
        size, prefix = next(((s, p) for s, p in _PREFIXES if min(sizes) >= s), (1.0, ""))
    decimals = min(max(1 - math.floor(math.log10(min(sizes) / size)), 0), 4)
    return lambda value: f"{value / size:.{decimals}f}{prefix}"


def short(value: float) -> str:
    """As few digits as possible, and an SI prefix from ten thousand on: 200000 is `200k`."""
    size, prefix = next(((s, p) for s, p in _PREFIXES if value >= max(s, 1e4)), (1.0, ""))
    return f"{value / size:g}{prefix}"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 9.95 else f"{seconds:#.2g} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def three_digits(value: float) -> str:
    """Three significant digits; whole numbers from 100 on."""
    return f"{value:.0f}" if abs(value) >= 99.95 or not value else f"{value:#.3g}"
