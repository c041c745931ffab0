"""Features on disk: what was added comes back in order, whoever added it, and an interruption costs one batch."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from arvid.contracts import Clip, UserError, VideoDataset
from arvid.evaluation.extraction import clip_batches, extract_features
from arvid.evaluation.feature_store import FeatureStore
from arvid.metrics.frechet import FeatureNetwork

KEY = {"clips": "abc", "network": "mean", "seed": 0}


class Clips(VideoDataset):
    """Clips of 3 square frames whose level is their number; `broken` raises, `odd` has another size."""

    def __init__(self, num: int, size: int = 4, broken: int = -1, odd: int = -1) -> None:
        self.num = num
        self.size = size
        self.broken = broken
        self.odd = odd

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> Clip:
        if index == self.broken:
            raise UserError(f"clip {index} cannot be read")
        height = self.size + (index == self.odd)
        return Clip(video=np.full((3, height, self.size, 3), index % 256, dtype=np.uint8))

    def fingerprint(self) -> str:
        return str(self.num)


class Mean(FeatureNetwork):
    """Two features: the mean level, and 1. Counts the clips it saw."""

    name = "mean"
    num_features = 2

    def __init__(self) -> None:
        super().__init__()
        self.num_seen = 0

    def forward(self, videos: Tensor) -> Tensor:
        self.num_seen += len(videos)
        mean = videos.float().mean((1, 2, 3, 4))
        return torch.stack([mean, torch.ones_like(mean)], dim=1)


def fill(store: FeatureStore, *numbers: int) -> None:
    indices = torch.tensor(numbers)
    store.add(indices, torch.stack([indices * 1.0, indices * 2.0], dim=1))


def test_features_come_back_in_the_order_of_their_clips(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, KEY)
    fill(store, 4, 2)
    fill(store, 0, 1, 3)
    expected = torch.arange(5.0)
    assert torch.equal(store.features()[:, 0], expected)
    assert torch.equal(store.features(num=3)[:, 0], expected[:3])
    again = FeatureStore(tmp_path, dict(reversed(KEY.items())))
    assert again.done() == {0, 1, 2, 3, 4}
    assert torch.equal(again.features(), store.features())
    with pytest.raises(ValueError, match="holds 5 of the features of 6 clips"):
        store.features(num=6)


def test_a_clip_that_two_processes_computed_counts_once(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, KEY)
    fill(store, 0, 2, 4)
    fill(store, 1, 3, 0)  # a distributed sampler's padding
    assert torch.equal(store.features()[:, 1], 2 * torch.arange(5.0))
    assert sum(len(indices) for indices, _ in store.batches()) == 5


def test_other_keys_are_other_stores(tmp_path: Path) -> None:
    fill(FeatureStore(tmp_path, KEY), 0)
    other = FeatureStore(tmp_path, {**KEY, "seed": 1})
    assert other.done() == set()
    with pytest.raises(ValueError, match="holds no features yet"):
        other.features()
    assert json.loads((other.folder / "key.json").read_text())["seed"] == 1
    (other.folder / "key.json").write_text(json.dumps(KEY))
    with pytest.raises(UserError, match="belongs to other features"):
        FeatureStore(tmp_path, {**KEY, "seed": 1})


def test_what_an_interruption_leaves_is_not_read(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, KEY)
    fill(store, 0, 1)
    (store.folder / ".00000002-x.safetensors").write_bytes(b"half")
    assert store.done() == {0, 1}
    (store.folder / "00000002-x.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="Delete it"):
        store.done()


def test_bad_batches_are_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, KEY)
    with pytest.raises(ValueError, match="not finite"):
        store.add(torch.tensor([0]), torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match="one row of features for each index"):
        store.add(torch.tensor([0, 1]), torch.zeros(3, 2))
    assert store.done() == set()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_extraction_fills_the_store(tmp_path: Path, num_workers: int) -> None:
    store, network = FeatureStore(tmp_path, KEY), Mean()
    extract_features(Clips(11), network, store, batch_size=4, num_workers=num_workers)
    assert torch.equal(store.features(num=11)[:, 0], torch.arange(11.0))
    extract_features(Clips(11), network, store)
    assert network.num_seen == 11  # nothing is computed twice


def test_an_interrupted_extraction_goes_on(tmp_path: Path) -> None:
    store, network = FeatureStore(tmp_path, KEY), Mean()
    with pytest.raises(UserError, match="clip 7 cannot be read"):
        extract_features(Clips(9, broken=7), network, store, batch_size=2, num_workers=1)
    assert store.done() == set(range(6))
    extract_features(Clips(9), network, store, batch_size=2, num_workers=0)
    assert network.num_seen == 9
    assert torch.equal(store.features(num=9)[:, 0], torch.arange(9.0))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_the_clips_and_give_the_same(tmp_path: Path, world_size: int) -> None:
    store = FeatureStore(tmp_path, KEY)
    for rank in range(world_size):
        share = range(rank, 10, world_size)
        extract_features(Clips(10), Mean(), store, indices=share, batch_size=3, num_workers=0)
    assert torch.equal(store.features(num=10)[:, 0], torch.arange(10.0))


def test_mixed_sizes_are_refused() -> None:
    for odd in (1, 3):  # within a batch, and from one to the next
        batches = clip_batches(Clips(4, odd=odd), range(4), batch_size=3, num_workers=0)
        with pytest.raises(UserError, match=r"one size .* got \(3, 4, 4\) and \(3, 5, 4\)"):
            list(batches)


def test_memory_does_not_grow_with_the_clips(tmp_path: Path) -> None:
    def peak(num: int) -> int:
        store = FeatureStore(tmp_path, {"num": num})
        tracemalloc.start()
        extract_features(
            Clips(num, size=64), Mean(), store, batch_size=4, num_workers=0, progress=False
        )
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(4)
    few, many = peak(8), peak(72)
    clip = 3 * 64 * 64 * 3
    assert few > 3 * clip  # the measurement sees the clips
    assert many < few + clip  # 64 more of them, and not the room of one
