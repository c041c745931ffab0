"""Set sizes of NOVA's sampling: the number of tokens that are sampled at once."""

from __future__ import annotations

import math
from itertools import pairwise


def set_sizes(num_tokens: int, num_sets: int) -> list[int]:
    """Tokens per set: cosine schedule, few at first; empty sets are left out."""
    left = [round(math.cos(math.pi * i / (2 * num_sets)) * num_tokens) for i in range(num_sets + 1)]
    sizes = [before - after for before, after in pairwise(left)]
    return [size for size in sizes if size > 0]
