"""Convert statistics files of StyleGAN-V's and cd-fvd's code: `arvid stats make --real FILE.pkl`.

Both programs pickle the attributes of their class `FeatureStats` (src/metrics/metric_utils.py of universome/stylegan-v,
cdfvd/utils/metric_utils.py of songweige/content-debiased-fvd): the number of clips, the sum of their features, the sum
of the features' outer products, and the features themselves if `capture_all` was set. Only numbers and numpy arrays are
read. A file with other objects is refused.

If a file has no features, one row per clip is made, with the same mean and covariance (see `rows_of_moments`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.evaluation._pickled_arrays import read_pickled
from arvid.evaluation.protocols import MIN_CLIPS, Protocol
from arvid.evaluation.real_statistics import ONLY_MOMENTS, save_statistics
from arvid.evaluation.scores import Score
from arvid.files import sha256_file

SUFFIX = ".pkl"
MAX_CLIPS = 2**24


@dataclass(frozen=True)
class FeatureStats:
    """Content of a file: one row for each clip."""

    rows: Float64[Tensor, "n d"]
    only_moments: bool
    """Whether the rows are not the clips' features, but have the same mean and covariance."""


def convert_statistics(
    protocol: Protocol, file: Path, folder: Path, scores: dict[str, Score]
) -> Path:
    """Convert a published file to a statistics file of arvid. Returns its path.

    The user states that the features were computed as the protocol says; the file does not show it. The real clips have
    no captions.

    Args:
        protocol: a protocol with a `clip`, for the number of real clips in the file.
        file: the published file.
        folder: folder of the new file.
        scores: the metric whose network computed the features, by the network's key.

    Raises UserError if the file cannot be read safely, or does not fit the protocol or the network.
    """
    assert protocol.clip is not None
    if len(scores) != 1:
        raise UserError(f"{file} has the features of one network: choose one metric with --metric.")
    ((key, score),) = scores.items()
    stats = read_feature_stats(file)
    num, width = stats.rows.shape
    wanted = score.num_features
    if wanted != width:
        raise UserError(f"{file} has {width} features per clip, but the network has {wanted}.")
    dataset = _UnknownClips(num, sha256_file(file))
    real = protocol.real(dataset)
    compared = real or [
        i for fold in range(protocol.folds) for i in protocol.choose(dataset, fold)[0]
    ]
    if sorted(compared) != list(range(num)):
        raise UserError(
            f"{file} has {num} real clips, but protocol {protocol.name} compares with {len(set(compared))} of them. "
            "Write a protocol with this one as `base` and another num_clips or num_real (docs/protocols.md)."
        )
    if stats.only_moments and real is None and protocol.folds > 1:
        raise UserError(
            f"{file} has one mean and covariance, but protocol {protocol.name} compares each of its {protocol.folds} "
            "folds with other real clips. Write a protocol with this one as `base` and num_real (docs/protocols.md)."
        )
    flag = {f"{key}.{ONLY_MOMENTS}": torch.zeros(())} if stats.only_moments else {}
    measured = {i: {f"{key}.real": row, **flag} for i, row in enumerate(stats.rows)}
    shape = (protocol.clip.num_frames, *protocol.clip.height_width, 3)
    clips = {i: dataset[i] for i in range(num)}
    return save_statistics(folder, protocol, dataset, clips, measured, scores, shape)


def read_feature_stats(path: Path) -> FeatureStats:
    """Raises UserError if the file cannot be read safely or has no mean and covariance."""
    content = read_pickled(path)
    try:
        stats = _stats(content)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UserError(
            f"{path}: not statistics of StyleGAN-V's or cd-fvd's code ({error!r:.200})."
        ) from error
    if not torch.isfinite(stats.rows).all():
        raise UserError(f"{path}: its statistics are not finite.")
    return stats


def rows_of_moments(
    mean: Float64[Tensor, " d"], covariance: Float64[Tensor, "d d"], num: int
) -> Float64[Tensor, "n d"]:
    """`num` rows whose mean and covariance (with ddof 0) are the given ones.

    A Fréchet distance depends on nothing else. The covariance of `num` clips has rank num - 1 at most; further
    eigenvalues are rounding errors.
    """
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)  # ascending
    rank = min(num - 1, len(values))
    factor = values[-rank:].clamp(min=0).sqrt()[:, None] * vectors.T[-rank:]  # F'F = covariance
    noise = torch.randn(num, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(noise - noise.mean(0)).Q  # orthonormal columns with mean 0
    return mean + num**0.5 * basis @ factor


def _stats(content: dict[str, Any]) -> FeatureStats:
    num = int(content["num_items"])
    if not MIN_CLIPS <= num <= MAX_CLIPS:
        raise ValueError(f"num_items is {num}")
    if content["capture_all"]:
        rows = torch.from_numpy(np.concatenate(content["all_features"]).astype(np.float64))
        if rows.ndim != 2 or len(rows) != num:
            raise ValueError(f"all_features is {tuple(rows.shape)}, for {num} clips")
        return FeatureStats(rows, only_moments=False)
    if not content["capture_mean_cov"]:
        raise ValueError("it has neither features nor moments")
    total, products = (
        torch.from_numpy(np.asarray(content[name]).astype(np.float64))
        for name in ("raw_mean", "raw_cov")
    )
    if total.ndim != 1 or products.shape != (len(total), len(total)):
        raise ValueError(f"raw_mean is {tuple(total.shape)}, raw_cov {tuple(products.shape)}")
    mean = total / num
    return FeatureStats(
        rows_of_moments(mean, products / num - torch.outer(mean, mean), num), only_moments=True
    )


class _UnknownClips(VideoDataset):
    """Real clips of a published file: only their number is known."""

    has_captions = False

    def __init__(self, num: int, fingerprint: str) -> None:
        self._num = num
        self._fingerprint = fingerprint

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> Clip:
        return Clip(video=np.zeros((0, 0, 0, 3), np.uint8))

    def fingerprint(self) -> str:
        return self._fingerprint
