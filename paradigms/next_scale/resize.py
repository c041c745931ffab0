"""Reducing and enlarging grids of vectors.

Both are products with fixed matrices, one for rows and one for columns, in float32. torch's own functions would give
the same values, but their gradients are summed in any order on GPUs. N frames, C numbers of a vector.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from arvid.lasting import lasting

Side = tuple[int, int]
"""Rows and columns of a grid."""


def shrink(x: Float[Tensor, "n h w c"], side: Side) -> Float[Tensor, "n i j c"]:
    """Mean of `x` over each cell of a smaller grid. Its sides need not divide the old ones."""
    return _resize(x, side, "area")


def enlarge(x: Float[Tensor, "n i j c"], side: Side) -> Float[Tensor, "n h w c"]:
    """Bicubic interpolation to a larger grid, as in VAR."""
    return _resize(x, side, "bicubic")


def centres(num: int, new: int, device: torch.device) -> Int[Tensor, " new"]:
    """Row (of `num`) at the centre of each of `new` equal areas: floor((i + 1/2) · num / new)."""
    return (2 * torch.arange(new, device=device) + 1) * num // (2 * new)


def _resize(x: Tensor, side: Side, mode: str) -> Tensor:
    old = (x.shape[1], x.shape[2])
    if old == side:
        return x
    rows, columns = (_constant(n, new, mode, x.device) for n, new in zip(old, side, strict=True))
    with torch.autocast(x.device.type, enabled=False):
        y = torch.einsum("ih,nhwc,jw->nijc", rows, x.float(), columns)
    return y.to(x.dtype)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant(num: int, new: int, mode: str, device: torch.device) -> Tensor:
    """`_matrix`, which torch.compile takes for a constant: it cannot follow how the matrix is made and kept."""
    return _matrix(num, new, mode, device)


@lru_cache(maxsize=256)
def _matrix(num: int, new: int, mode: str, device: torch.device) -> Float[Tensor, "new num"]:
    """Matrix of an interpolation along one axis: its columns are the interpolated unit vectors."""
    with lasting():
        units = torch.eye(num, device="cpu")[None, :, :, None]
        return F.interpolate(units, (new, 1), mode=mode)[0, :, :, 0].T.contiguous().to(device)
