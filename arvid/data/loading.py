"""Clips of a dataset in batches: worker processes decode and resize the next ones while the network is at one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader, Dataset

from arvid.contracts import Clip, UserError, VideoDataset

FEW_BATCHES = 8
"""Up to so many batches are read without worker processes, which take a while to start."""
MAX_WORKERS = 4


def load_batches(
    dataset: VideoDataset, batches: Sequence[Sequence[int]], num_workers: int | None = None
) -> Iterator[list[Clip]]:
    """The clips of each batch, given by their numbers. Memory is bounded by the batches underway, two for each worker.

    Args:
        num_workers: processes that read; by default one for each core but one, at most four, and none for few
            batches.

    Raises UserError as the dataset does for files that cannot be read.
    """
    if num_workers is None:
        many = len(batches) > FEW_BATCHES
        num_workers = min((os.cpu_count() or 1) - 1, MAX_WORKERS) if many else 0
    loader = DataLoader(_Batches(dataset, batches), batch_size=None, num_workers=num_workers)
    for clips in loader:
        if isinstance(clips, UserError):
            raise clips
        yield clips


class _Batches(Dataset[list[Clip] | UserError]):
    """The clips of each batch. Errors travel as values: a worker process would garble them."""

    def __init__(self, dataset: VideoDataset, batches: Sequence[Sequence[int]]) -> None:
        self.dataset = dataset
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> list[Clip] | UserError:
        try:
            return [self.dataset[i] for i in self.batches[number]]
        except UserError as error:
            return error
