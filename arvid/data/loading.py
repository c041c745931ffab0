"""Clips of a dataset in batches: worker processes decode and resize the next ones while the network is at one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader, Dataset

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data.stand_ins import Tally, Unreadable, read_clip

FEW_BATCHES = 8
"""Up to so many batches are read without worker processes, which take a while to start."""
MAX_WORKERS = 4


def load_batches(
    dataset: VideoDataset,
    batches: Sequence[Sequence[int]],
    num_workers: int | None = None,
    *,
    tally: Tally | None = None,
) -> Iterator[list[Clip]]:
    """The clips of each batch, given by their numbers. Memory is bounded by the batches underway, two for each worker.

    Args:
        num_workers: processes that read; by default one for each core but one, at most four, and none for few
            batches.
        tally: if given, others stand in for clips that cannot be read (see `stand_ins`), and are counted there.

    Raises UserError as the dataset does for files that cannot be read.
    """
    if num_workers is None:
        many = len(batches) > FEW_BATCHES
        num_workers = min((os.cpu_count() or 1) - 1, MAX_WORKERS) if many else 0
    examples = _Batches(dataset, batches, replaced=tally is not None)
    loader = DataLoader(examples, batch_size=None, num_workers=num_workers)
    for found in loader:
        if isinstance(found, UserError):
            raise found
        clips, failed = found
        if tally:
            tally.add(failed)
        yield clips


Batch = tuple[list[Clip], list[Unreadable]]


class _Batches(Dataset[Batch | UserError]):
    """The clips of each batch. Errors travel as values: a worker process would garble them."""

    def __init__(
        self, dataset: VideoDataset, batches: Sequence[Sequence[int]], *, replaced: bool
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.replaced = replaced

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch | UserError:
        try:
            if not self.replaced:
                return [self.dataset[i] for i in self.batches[number]], []
            found = [read_clip(self.dataset, i) for i in self.batches[number]]
            return [clip for clip, _ in found], [one for _, failed in found for one in failed]
        except UserError as error:
            return error
