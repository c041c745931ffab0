"""Orders of the clips: every clip once in an epoch, the same for any number of processes, each shard read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arvid.contracts import TokenSpec, UserError, VideoTokenizer
from arvid.data import _shard_copies
from arvid.data.datamodule import StepSampler, VideoDataModule
from arvid.data.order import WholeOrder, WindowOrder
from arvid.data.shard_files import Manifest, begin, read_bytes, shard_name, write_shard
from arvid.data.sprites import Sprites
from arvid.data.token_cache import encode_dataset
from arvid.data.token_shards import TokenShards
from arvid.training.setting import setting_hash


def windows(num_clips: int = 1003, step: int = 24, **options: Any) -> WindowOrder:
    given = {"clips_per_shard": 10, "window": 3, "clips_per_step": step, **options}
    return WindowOrder(num_clips, given.pop("seed", 5), **given)


def test_the_whole_order_is_that_of_earlier_versions() -> None:
    order = WholeOrder(10, seed=3)
    expected = np.concatenate([np.random.default_rng([3, i]).permutation(10) for i in range(3)])
    assert [order(i) for i in range(30)] == expected.tolist()
    assert [order(i) for i in (25, 2, 14)] == expected[[25, 2, 14]].tolist()


@pytest.mark.parametrize("num_clips", [7, 24, 100, 1003])
@pytest.mark.parametrize("step", [1, 6, 24, 130])
def test_every_clip_comes_once_in_an_epoch(num_clips: int, step: int) -> None:
    order = windows(num_clips, step)
    assert 1 <= order.num_lanes <= min(step, 64, num_clips)
    assert step % order.num_lanes == 0
    per_epoch: dict[tuple[int, int], int] = Counter()
    for position in range(step * (3 * num_clips // step + 1)):
        place = position // step * (step // order.num_lanes) + position % step % (
            step // order.num_lanes
        )
        epoch = place // order.lane_size
        per_epoch[epoch, order(position)] += 1
    assert set(per_epoch.values()) == {1}
    for epoch in range(2):
        seen = {clip for e, clip in per_epoch if e == epoch}
        assert seen <= set(range(num_clips))
        assert num_clips - len(seen) < order.num_lanes


def test_the_order_is_random_and_a_function_of_seed_and_position() -> None:
    first, again, other = windows(), windows(), windows(seed=6)
    clips = [first(i) for i in range(2000)]
    assert [again(i) for i in range(1999, -1, -1)] == clips[::-1]
    assert [other(i) for i in range(2000)] != clips
    assert clips[:996] != clips[1008:]
    together = [len({clip // 10 for clip in clips[i : i + 24]}) for i in range(0, 960, 24)]
    assert min(together) > 12  # clips of a step come from many shards


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_processes_share_the_same_steps(world_size: int) -> None:
    alone = list(islice(StepSampler(1003, 24, seed=5, order=windows()), 60))
    ranks = [
        list(
            islice(
                StepSampler(
                    1003,
                    3,
                    seed=5,
                    start=5 * 8 // world_size,
                    rank=rank,
                    world_size=world_size,
                    order=windows(),
                ),
                55 * 8 // world_size,
            )
        )
        for rank in range(world_size)
    ]
    flat = [i for batches in zip(*ranks, strict=True) for batch in batches for i in batch]
    assert flat == [i for step in alone[5:] for i in step]


def test_a_process_reads_each_of_its_shards_once() -> None:
    """Few shards are in use at a time, and processes share only shards at the borders of their lanes."""
    told: list[int] = []
    order = windows(4800, 24, prefetch=told.extend)
    own = [[order(step * 24 + j) // 10 for j in range(6)] for step in range(200)]
    others = {order(step * 24 + j) // 10 for step in range(200) for j in range(6, 24)}
    flat = [shard for step in own for shard in step]
    assert len(set(flat) & others) <= 7
    for shard in set(flat):
        steps = [i for i, step in enumerate(own) if shard in step]
        assert steps[-1] - steps[0] < 2 * 3 * 10
    assert set(flat) <= {*told, *flat[: 6 * 30]}


def test_bytes_per_clip_through_fsspec(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four nodes read an epoch from a URL, each with a cache for a fifth of the set: at most 1.2 times its size."""
    manifest = Manifest(
        tokenizer="t",
        data="d",
        spec=TokenSpec("discrete", 64000, (4, 8, 8), True),
        clip_shape=(17, 128, 128),
        classes=(),
        num_clips=16 * 120,
        clips_per_shard=16,
    )
    begin(tmp_path / "there", manifest)
    facts = [{"caption": "a caption of a clip", "label": -1, "motion": 1.0, "fps": 8.0}] * 16
    for number in range(120):
        tokens = torch.randint(64000, (16, 5, 16, 16))
        write_shard(tmp_path / "there", manifest, number, tokens, None, facts)
    total = sum((tmp_path / "there" / shard_name(n)).stat().st_size for n in range(120))
    fetched: list[int] = []

    def counted(path: str) -> bytes:
        content = read_bytes(path)
        fetched.append(len(content))
        return content

    monkeypatch.setattr(_shard_copies, "read_bytes", counted)
    seen: list[int] = []
    for node in range(4):
        monkeypatch.setenv("ARVID_CACHE", str(tmp_path / f"cache{node}"))
        shards = TokenShards((tmp_path / "there").as_uri(), cache_gib=total / 5 / 2**30)
        order = windows(1920, 16, clips_per_shard=16, window=2)
        sampler = StepSampler(1920, 4, seed=5, rank=node, world_size=4, order=order)
        for batch in islice(sampler, 120):
            seen += batch
            for index in batch:
                shards.example(index)
        copies = (tmp_path / f"cache{node}").rglob("0*.safetensors")
        assert sum(path.stat().st_size for path in copies) <= total / 5
    assert sorted(seen) == list(range(1920))
    tokens_of_a_clip = 2 * 5 * 16 * 16
    assert sum(fetched) <= 1.2 * tokens_of_a_clip * len(seen)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_shuffles_by_windows(
    tmp_path: Path,
    corners: Callable[..., VideoTokenizer],
    monkeypatch: pytest.MonkeyPatch,
    num_workers: int,
) -> None:
    monkeypatch.setattr("arvid.data.token_cache.CLIPS_PER_SHARD", 4)
    clips = Sprites(40, num_frames=5, size=16)
    encode_dataset(corners(), "hash", clips, tmp_path)
    shards = TokenShards(str(tmp_path))
    options = {"clips_per_step": 6, "batch_size": 3, "seed": 4, "num_workers": num_workers}
    data = VideoDataModule(shards, shards, shuffle_window=2, **options)
    order = windows(40, 6, seed=4, clips_per_shard=4, window=2)
    seen = _seen_captions(data, corners(), steps=4)
    assert seen == [clips[order(i)].caption for i in range(24)]


def _seen_captions(data: VideoDataModule, tokenizer: VideoTokenizer, steps: int) -> list[str]:
    """Captions of the clips of the steps of a training."""
    from lightning import LightningModule, Trainer

    class Reader(LightningModule):
        trains_on_tokens, tokenizer_hash = True, "hash"

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.tokenizer = tokenizer
            self.seen: list[str] = []

        def training_step(self, batch: dict[str, Any], batch_index: int) -> torch.Tensor:
            self.seen += batch["caption"]
            return self.weight.square()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Reader()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    data.trainer = trainer
    data.share_steps(trainer)
    trainer.fit(module, data)
    return module.seen


def test_a_window_is_at_least_one_shard() -> None:
    clips = Sprites(4, num_frames=5, size=16)
    with pytest.raises(UserError, match=r"data.shuffle_window must be at least 1, not 0"):
        VideoDataModule(clips, clips, shuffle_window=0)


def test_only_a_given_window_is_part_of_the_setting() -> None:
    from arvid.training.setting import _of_training

    clips = Sprites(4, num_frames=5, size=16)
    data = {"posterior": False, "clips_per_step": 4, "seed": 0}
    config = {"data": data, "trainer": {}, "seed_everything": 0}
    without = _of_training(config, clips, clips, 1)
    assert not any("window" in key for key in without)
    assert _of_training({**config, "data": {**data, "shuffle_window": None}}, clips, clips, 1) == (
        without
    )
    given = _of_training({**config, "data": {**data, "shuffle_window": 8}}, clips, clips, 1)
    assert given == {**without, "data.shuffle_window": 8}
    assert setting_hash(given) != setting_hash(without)
