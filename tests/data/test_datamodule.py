"""Batches: the clips of a step, tokens from the cache, frames for tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from arvid.contracts import Clip, UserError, VideoDataset, VideoTokenizer
from arvid.data.collate import collate, normalise, to_uint8
from arvid.data.datamodule import StepSampler, VideoDataModule, VideoExamples
from arvid.data.sprites import Sprites
from arvid.data.token_cache import encode_dataset
from arvid.data.token_shards import TokenShards
from arvid.data.windows import Windows

CLIPS = Sprites(20, num_frames=5, size=16)


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
    assert together == alone  # the same as one process with the whole batch
    assert all(len(set(step)) == len(step) for step in together)


def test_processes_go_on_together() -> None:
    given = {"num_items": 24, "seed": 5, "rank": 1, "world_size": 2}
    assert batches(8, **given)[3:] == batches(5, start=3, **given)


def test_a_set_smaller_than_a_batch_is_repeated() -> None:
    assert sorted(batches(1, num_items=2, seed=0)[0]) == [0, 0, 1, 1]


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
    assert batch["fps"].isnan().all()


def test_clips_of_unlike_shape_are_refused() -> None:
    with pytest.raises(UserError, match=r"\(5, 16, 16\).*\(5, 24, 24\): they must be equal"):
        VideoDataModule(CLIPS, Sprites(4, num_frames=5, size=24))


class Watcher(LightningModule):
    """Records its input."""

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


def train(
    module: Watcher,
    steps: int = 2,
    clips: VideoDataset = CLIPS,
    num_workers: int = 0,
    **options: Any,
) -> Watcher:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    data = VideoDataModule(clips, clips, batch_size=3, seed=4, num_workers=num_workers)
    trainer.fit(module, data)
    return module


def test_the_module_decides_whether_it_gets_frames_or_tokens(
    own_cache: Path, corners: Callable[..., VideoTokenizer]
) -> None:
    frames = train(Watcher())
    assert frames.seen[0]["video"].shape == (3, 3, 5, 16, 16)
    assert not own_cache.exists()
    tokens = train(Watcher(corners()))
    assert tokens.seen[0]["tokens"].shape == (3, 5, 2, 2, 3)
    assert [b["caption"] for b in frames.seen] == [b["caption"] for b in tokens.seen]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_are_the_training_set_that_they_were_made_of(
    tmp_path: Path, corners: Callable[..., VideoTokenizer], num_workers: int
) -> None:
    tokenizer = corners()
    encode_dataset(tokenizer, "hash", CLIPS, tmp_path / "shards")
    seen = train(
        Watcher(tokenizer), 9, TokenShards(str(tmp_path / "shards")), num_workers=num_workers
    ).seen
    order = list(islice(StepSampler(20, 3, seed=4), 9))
    assert len(seen) == 9
    for batch, indices in zip(seen, order, strict=True):
        clips = [CLIPS[i] for i in indices]
        video = torch.stack([normalise(clip.video) for clip in clips])
        assert torch.equal(batch["tokens"], tokenizer.encode(video))
        assert batch["caption"] == [clip.caption for clip in clips]


def test_shards_of_another_tokenizer_are_refused(
    tmp_path: Path, corners: Callable[..., VideoTokenizer]
) -> None:
    encode_dataset(corners(), "another", CLIPS, tmp_path)
    with pytest.raises(UserError, match="tokens of another tokenizer: its hash is another there"):
        train(Watcher(corners()), clips=TokenShards(str(tmp_path)))


def read_by_length(prompt: str) -> Tensor | None:
    """Rows of the number of words; no prompt with a circle is cached."""
    words = len(prompt.split())
    return None if "circle" in prompt else torch.full((words, 2), float(words))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_read_the_text_features(
    tmp_path: Path, corners: Callable[..., VideoTokenizer], num_workers: int
) -> None:
    tokenizer = corners()
    encode_dataset(tokenizer, "hash", CLIPS, tmp_path)
    shards = TokenShards(str(tmp_path))
    module = Watcher(tokenizer)
    without = train(Watcher(tokenizer), 6, shards)
    assert not any("text" in batch for batch in without.seen)
    module.conditioner = SimpleNamespace(text=SimpleNamespace(reader=lambda: read_by_length))
    train(module, 6, shards, num_workers=num_workers)
    captions = [caption for batch in module.seen for caption in batch["caption"]]
    assert len({"circle" in caption for caption in captions}) == 2
    for batch, plain in zip(module.seen, without.seen, strict=True):
        assert batch["caption"] == plain["caption"]
        expected = [read_by_length(caption) for caption in batch["caption"]]
        if all(rows is None for rows in expected):
            assert "text" not in batch
            continue
        rows, lengths = batch["text"]
        assert list(lengths) == [-1 if one is None else len(one) for one in expected]
        for padded, one in zip(rows, expected, strict=True):
            assert padded.sum() == (0 if one is None else one.sum())


def test_a_tokenizer_cannot_train_on_shards(
    tmp_path: Path, corners: Callable[..., VideoTokenizer]
) -> None:
    encode_dataset(corners(), "hash", CLIPS, tmp_path)
    with pytest.raises(UserError, match="holds the tokens of clips, not their frames"):
        train(Watcher(), clips=TokenShards(str(tmp_path)))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_a_dataset_reach_the_user_unharmed(num_workers: int) -> None:
    class Broken(Sprites):
        def __getitem__(self, index: int) -> Clip:
            if index:
                raise UserError("this clip is broken")
            return super().__getitem__(index)

    with pytest.raises(UserError, match=r"^this clip is broken$"):
        train(Watcher(), clips=Broken(20, num_frames=5, size=16), num_workers=num_workers)


def test_processes_share_the_encoding(
    own_cache: Path, corners: Callable[..., VideoTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arvid.data.token_cache.CLIPS_PER_SHARD", 4)
    data = VideoDataModule(CLIPS, CLIPS)
    modules = [Watcher(corners()) for _ in range(2)]
    made = [next(iter(data.encode(m, share=(r, 2)).values())) for r, m in enumerate(modules)]
    assert made == [2, 0]  # the second process makes shards 1 and 3
    assert [m.tokenizer.num_encoded for m in modules] == [12, 8]


def test_accumulated_batches_count_when_a_run_goes_on() -> None:
    whole = train(Watcher(), steps=3, accumulate_grad_batches=2)
    order = list(islice(StepSampler(20, 3, seed=4), 6))
    assert [b["caption"] for b in whole.seen] == [[CLIPS[i].caption for i in b] for b in order]


def test_captions_that_are_a_condition_must_be_there() -> None:
    data = VideoDataModule(Sprites(4, num_frames=5, size=16), Sprites(4, num_frames=5, size=16))
    conditioner = SimpleNamespace(text=object())
    module = SimpleNamespace(conditioner=conditioner, trains_on_tokens=False)
    data.trainer = SimpleNamespace(lightning_module=module)  # type: ignore[assignment]
    data.setup("fit")
    data.train.has_captions = False
    with pytest.raises(UserError, match=r"no clip of data\.train has one"):
        data.setup("fit")
    conditioner.text = None
    data.setup("fit")
    assert not Windows(data.train, num_frames=2).has_captions
