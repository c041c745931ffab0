"""Batches: which clips make up a step, tokens from the cache, frames for tokenizers."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from arvid.contracts import Clip, TokenSpec, UserError, VideoTokenizer
from arvid.data.collate import collate, normalise, to_uint8
from arvid.data.datamodule import StepSampler, VideoDataModule, VideoExamples
from arvid.data.sprites import Sprites
from arvid.data.token_cache import TokenCache, cache_folder, encode_dataset

CLIPS = Sprites(20, num_frames=5, size=16)


class Corners(VideoTokenizer):
    """Tokens are the pixels of a coarse grid; counts how often it is asked."""

    def __init__(self, kind: str = "continuous") -> None:
        super().__init__()
        self.kind = kind
        self.num_encoded = 0

    @property
    def spec(self) -> TokenSpec:
        discrete = self.kind == "discrete"
        return TokenSpec("discrete" if discrete else "continuous", 256, (1, 8, 8), True)

    def encode(self, video: Tensor) -> Tensor:
        self.num_encoded += len(video)
        tokens = video[..., ::8, ::8].permute(0, 2, 3, 4, 1).contiguous()
        return ((tokens[..., 0] + 1) * 127.5).long() if self.kind == "discrete" else tokens

    def decode(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError


class Broken(Sprites):
    """A dataset that fails at its last clip."""

    def __getitem__(self, index: int) -> Clip:
        if index == len(self) - 1:
            raise UserError("the last clip is broken")
        return super().__getitem__(index)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARVID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def batches(count: int, **options: Any) -> list[list[int]]:
    return list(islice(StepSampler(options.pop("num_items", 10), 4, **options), count))


# Which clips make up a step


def test_batches_are_a_function_of_seed_and_step() -> None:
    assert batches(9, seed=3) == batches(9, seed=3)
    assert batches(9, seed=3) != batches(9, seed=4)


@pytest.mark.parametrize("start", [1, 2, 5, 13])
def test_a_run_that_goes_on_sees_the_batches_that_came_next(start: int) -> None:
    assert batches(20, seed=1)[start:] == batches(20 - start, seed=1, start=start)


def test_every_clip_is_seen_once_before_any_is_seen_again() -> None:
    seen = [i for batch in batches(15, seed=0) for i in batch]
    epochs = [seen[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_each_step_without_overlap(world_size: int) -> None:
    ranks = [
        batches(6, num_items=24, seed=5, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    together = [[i for batch in step for i in batch] for step in zip(*ranks, strict=True)]
    alone = list(islice(StepSampler(24, 4 * world_size, seed=5), 6))
    assert together == alone  # as one process with the whole batch would have it
    assert all(len(set(step)) == len(step) for step in together)


def test_processes_go_on_together() -> None:
    given = {"num_items": 24, "seed": 5, "rank": 1, "world_size": 2}
    assert batches(8, **given)[3:] == batches(5, start=3, **given)


def test_a_set_smaller_than_a_batch_is_repeated() -> None:
    assert sorted(batches(1, num_items=2, seed=0)[0]) == [0, 0, 1, 1]


# Tokens


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_cached_tokens_are_what_encoding_gives(kind: str) -> None:
    tokenizer = Corners(kind)
    cache = encode_dataset(tokenizer, "hash", CLIPS)
    assert len(cache) == len(CLIPS) == 20
    for i in (0, 7, 19):  # across the batches of encoding
        expected = tokenizer.encode(normalise(CLIPS[i].video)[None])[0]
        assert torch.equal(cache[i]["tokens"], expected)
        assert cache[i]["tokens"].dtype == expected.dtype
        assert cache[i]["caption"] == CLIPS[i].caption
        assert (cache[i]["label"], cache[i]["motion"]) == (CLIPS[i].label, CLIPS[i].motion)


def test_tokens_are_encoded_once(own_cache: Path) -> None:
    tokenizer = Corners()
    for _ in range(2):
        encode_dataset(tokenizer, "hash", CLIPS)
    assert tokenizer.num_encoded == 20
    assert [f.name for f in (own_cache / "tokens").iterdir()] == [cache_folder("hash", CLIPS).name]


def test_an_error_leaves_no_half_written_cache(own_cache: Path) -> None:
    broken = Broken(20, num_frames=5, size=16)
    with pytest.raises(UserError, match="the last clip is broken"):
        encode_dataset(Corners(), "hash", broken)
    assert list((own_cache / "tokens").iterdir()) == []


def test_a_process_that_was_slower_takes_the_tokens_of_the_faster() -> None:
    class Slow(Corners):
        def encode(self, video: Tensor) -> Tensor:
            if not self.num_encoded:
                encode_dataset(Corners(), "hash", CLIPS)
            return super().encode(video)

    cache = encode_dataset(Slow(), "hash", CLIPS)
    assert len(cache) == 20
    assert len(list(cache.folder.parent.iterdir())) == 1


def test_the_key_changes_with_tokenizer_and_data() -> None:
    sets = [CLIPS, Sprites(20, num_frames=5, size=16, seed=1), Sprites(21, num_frames=5, size=16)]
    keys = {cache_folder(h, s) for h in ("a", "b") for s in sets}
    assert len(keys) == 6
    assert cache_folder("a", CLIPS) == cache_folder("a", Sprites(20, num_frames=5, size=16))


# Batches


def test_video_batches() -> None:
    examples = VideoExamples(CLIPS)
    batch = collate([examples[0], examples[1]])
    assert batch["video"].shape == (2, 3, 5, 16, 16)
    assert batch["video"].dtype == torch.float32
    assert batch["video"].abs().max() <= 1
    np.testing.assert_array_equal(to_uint8(batch["video"])[1].numpy(), CLIPS[1].video)
    assert batch["caption"] == [CLIPS[0].caption, CLIPS[1].caption]
    assert batch["label"].tolist() == [CLIPS[0].label, CLIPS[1].label]
    assert batch["motion"].dtype == torch.float32


def test_what_is_unknown_of_a_clip_is_marked() -> None:
    class Bare(Sprites):
        def __getitem__(self, index: int) -> Clip:
            return Clip(video=super().__getitem__(index).video)

    batch = collate([VideoExamples(Bare(1))[0]])
    assert batch["caption"] == [""]
    assert batch["label"].tolist() == [-1]
    assert batch["motion"].isnan().all()


def test_clips_of_unlike_shape_are_refused() -> None:
    with pytest.raises(UserError, match=r"\(5, 16, 16\).*\(5, 24, 24\): they must be equal"):
        VideoDataModule(CLIPS, Sprites(4, num_frames=5, size=24))


class Watcher(LightningModule):
    """Notes what it is given."""

    def __init__(self, tokenizer: VideoTokenizer | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trains_on_tokens = tokenizer is not None
        self.tokenizer = tokenizer
        self.tokenizer_hash = "hash"
        self.seen: list[dict[str, Any]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.seen.append(batch)
        return self.weight.square()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(module: Watcher, steps: int = 2, **options: Any) -> Watcher:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, VideoDataModule(CLIPS, CLIPS, batch_size=3, seed=4))
    return module


def test_the_module_decides_whether_it_gets_frames_or_tokens(own_cache: Path) -> None:
    frames = train(Watcher())
    assert frames.seen[0]["video"].shape == (3, 3, 5, 16, 16)
    assert not own_cache.exists()
    tokens = train(Watcher(Corners()))
    assert tokens.seen[0]["tokens"].shape == (3, 5, 2, 2, 3)
    assert [b["caption"] for b in frames.seen] == [b["caption"] for b in tokens.seen]
    assert isinstance(encode_dataset(Corners(), "hash", CLIPS), TokenCache)


def test_accumulated_batches_count_when_a_run_goes_on() -> None:
    whole = train(Watcher(), steps=3, accumulate_grad_batches=2)
    order = list(islice(StepSampler(20, 3, seed=4), 6))
    assert [b["caption"] for b in whole.seen] == [[CLIPS[i].caption for i in b] for b in order]
