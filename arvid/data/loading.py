"""Load clips in batches. Worker processes decode and resize the next batches while the network computes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader, Dataset

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.data.stand_ins import Tally, Unreadable, read_clip

FEW_BATCHES = 8
"""Up to this number of batches are read without worker processes, because these start slowly."""
MAX_WORKERS = 4


def load_batches(
    dataset: VideoDataset,
    batches: Sequence[Sequence[int]],
    num_workers: int | None = None,
    *,
    tally: Tally | None = None,
) -> Iterator[list[Clip]]:
    """Yield the clips of each batch. Memory holds the batches in progress, two per worker.

    Args:
        dataset: the clips.
        batches: indices of the clips of each batch.
        num_workers: worker processes. By default the number of cores minus one, at most four; none for few batches.
        tally: counts unreadable clips, which are then replaced by others (see `stand_ins`). None: they are an error.

    Raises UserError as the dataset does for unreadable files.
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
    """The clips of each batch. UserErrors are returned, because a worker process would wrap them into its traceback."""

    def __init__(
        self, dataset: VideoDataset, batches: Sequence[Sequence[int]], *, replaced: bool
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.replaced = replaced

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, batch_index: int) -> Batch | UserError:
        indices = self.batches[batch_index]
        try:
            if not self.replaced:
                return [self.dataset[i] for i in indices], []
            found = [read_clip(self.dataset, i) for i in indices]
            return [clip for clip, _ in found], [one for _, failed in found for one in failed]
        except UserError as error:
            return error
