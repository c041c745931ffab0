"""Features of a dataset's clips: workers decode and resize the next batches while the network is at one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from arvid.contracts import UserError, VideoDataset
from arvid.evaluation.feature_store import FeatureStore
from arvid.metrics.frechet import FeatureNetwork

Batch = tuple[Int[Tensor, " b"], UInt8[Tensor, "b t h w 3"]]


def extract_features(
    dataset: VideoDataset,
    network: FeatureNetwork,
    store: FeatureStore,
    *,
    indices: Sequence[int] | None = None,
    batch_size: int = 16,
    num_workers: int = 2,
    progress: bool = True,
) -> None:
    """Fill `store` with the features of a dataset's clips, those that it lacks.

    Memory is bounded by the batches underway (two for each worker), whatever the number of clips. Interrupted, it
    goes on with the next call. Processes share the work by giving each its own `indices`.

    Args:
        indices: the clips to take; all by default.
        num_workers: processes that decode and resize; 0 does it in between.

    Raises UserError for clips of mixed sizes, and as the dataset does for files that cannot be read.
    """
    done = store.done()
    wanted = range(len(dataset)) if indices is None else indices
    missing = [i for i in dict.fromkeys(wanted) if i not in done]
    batches = clip_batches(dataset, missing, batch_size=batch_size, num_workers=num_workers)
    bar = tqdm(
        total=len(missing),
        desc="features",
        unit="clip",
        delay=1,
        disable=None if progress else True,
    )
    with bar:
        for numbers, videos in batches:
            store.add(numbers, network(videos))
            bar.update(len(numbers))


def clip_batches(
    dataset: VideoDataset, indices: Sequence[int], *, batch_size: int, num_workers: int
) -> Iterator[Batch]:
    """Clips by number as batches of indices (B,) and videos uint8 (B, T, H, W, 3), prepared by workers.

    Raises UserError for clips of mixed sizes, and as the dataset does for files that cannot be read.
    """
    loader = DataLoader(
        _Numbered(dataset, indices),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,
    )
    first: tuple[int, ...] | None = None
    for items in loader:
        videos = [_unwrap(video) for _, video in items]
        for video in videos:
            first = first or tuple(video.shape)
            if tuple(video.shape) != first:
                raise UserError(
                    "Clips of one set must have one size (frames, height, width), "
                    f"got {first[:3]} and {tuple(video.shape[:3])}."
                )
        yield torch.tensor([index for index, _ in items]), torch.stack(videos)


class _Numbered(Dataset[tuple[int, Tensor | UserError]]):
    """Some clips of a dataset, each with its number in it. Errors travel as values: a worker would garble them."""

    def __init__(self, dataset: VideoDataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> tuple[int, Tensor | UserError]:
        index = self.indices[row]
        try:
            return index, torch.from_numpy(self.dataset[index].video)
        except UserError as error:
            return index, error


def _unwrap(video: Tensor | UserError) -> Tensor:
    if isinstance(video, UserError):
        raise video
    return video
