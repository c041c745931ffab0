"""Files that are damaged, deleted or overwritten during a training: named once, counted, replaced."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from arvid.contracts import UserError
from arvid.data.clips import ClipSpec
from arvid.data.datamodule import StepSampler, VideoDataModule, VideoExamples, load
from arvid.data.folder import VideoFolder
from arvid.data.loading import load_batches
from arvid.data.stand_ins import Tally, read_clip
from arvid.data.video import VideoError, write_video

CLIP = ClipSpec(num_frames=5, size=16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i in range(8):
        frames = np.full((12, 16, 16, 3), 20 * i, np.uint8)
        frames += np.arange(12, dtype=np.uint8)[:, None, None, None]
        write_video(tmp_path / "videos" / "a" / f"{i}.mp4", frames, 8)
    return tmp_path / "videos"


def batches(dataset: VideoFolder, tally: Tally, num: int, num_workers: int = 0) -> list[Any]:
    sampler = StepSampler(len(dataset), 4, seed=0)
    loaded = load(
        VideoExamples(dataset), tally=tally, batch_sampler=sampler, num_workers=num_workers
    )
    iterator = iter(loaded)
    return [next(iterator) for _ in range(num)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_deleted_during_an_epoch(
    root: Path, caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    dataset, tally = VideoFolder(root, CLIP), Tally(8)
    before = batches(dataset, tally, 6, num_workers)
    (root / "a" / "3.mp4").unlink()
    after = batches(dataset, tally, 6, num_workers)
    again = batches(VideoFolder(root, CLIP), Tally(8), 1)
    assert len(again[0]["video"]) == 4
    same = [bool((a["video"] == b["video"]).all()) for a, b in zip(before, after, strict=True)]
    assert not all(same)
    assert all(len(batch["video"]) == 4 for batch in after)
    assert (tally.clips, tally.files) == ({3}, {str(root / "a" / "3.mp4")})
    assert caplog.text.count("3.mp4 can no longer be read: there is no such file") == 1
    repeated = batches(dataset, Tally(8), 6)
    for a, b in zip(after, repeated, strict=True):
        np.testing.assert_array_equal(a["video"], b["video"])


def test_files_that_grow_or_are_replaced(root: Path) -> None:
    dataset = VideoFolder(root, CLIP)
    with (root / "a" / "1.mp4").open("ab") as file:
        file.write(b"more")
    with pytest.raises(VideoError, match=r"1\.mp4 .*has changed"):
        dataset[1]
    path = root / "a" / "2.mp4"
    before = dataset[2].video
    os.utime(path)
    np.testing.assert_array_equal(dataset[2].video, before)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"2\.mp4 .*has changed"):
        dataset[2]
    tally = Tally(8)
    batches(dataset, tally, 4)
    assert tally.clips == {1, 2}


def test_too_many_are_an_error(root: Path) -> None:
    dataset = VideoFolder(root, CLIP)
    for i in range(5):
        (root / "a" / f"{i}.mp4").unlink()
    with pytest.raises(UserError, match=r"5 of 8 clips cannot be read, from 5 files"):
        batches(dataset, Tally(8), 8)
    shutil.rmtree(root)
    with pytest.raises(VideoError, match="no such file"):
        read_clip(dataset, 6)


def test_the_share_is_an_option(root: Path) -> None:
    dataset = VideoFolder(root, CLIP)
    (root / "a" / "0.mp4").unlink()
    data = VideoDataModule(dataset, dataset, max_unreadable=0.1)
    with pytest.raises(UserError, match="1 of 8 clips"):
        batches(dataset, data.tallies[0], 8)
    with pytest.raises(UserError, match="max_unreadable"):
        VideoDataModule(dataset, dataset, max_unreadable=2)


def test_tokens_are_made_of_stand_ins_and_evaluation_is_not(root: Path) -> None:
    dataset, tally = VideoFolder(root, CLIP), Tally(8)
    (root / "a" / "3.mp4").unlink()
    (clips,) = load_batches(dataset, [range(8)], tally=tally)
    assert len(clips) == 8
    assert tally.clips == {3}
    with pytest.raises(UserError, match="no such file"):
        list(load_batches(dataset, [range(8)]))


def test_a_damaged_middle_of_a_long_container(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """20,000 frames. The packets still give their number, and clips outside the damage are read as before."""
    (tmp_path / "videos" / "a").mkdir(parents=True)
    path = tmp_path / "videos" / "a" / "long.mp4"
    write_long(path, 20_000)
    spec = ClipSpec(num_frames=17, size=16)
    whole = VideoFolder(tmp_path / "videos", spec, clips_per_video=40)
    meant = [whole[i].video for i in range(40)]
    data = bytearray(path.read_bytes())
    start, stop = int(len(data) * 0.45), int(len(data) * 0.55)
    data[start:stop] = bytes(stop - start)
    path.write_bytes(data)
    dataset, tally = VideoFolder(tmp_path / "videos", spec, clips_per_video=40), Tally(40)
    assert len(dataset) == 40
    with caplog.at_level(logging.WARNING):
        loaded = batches(dataset, tally, 20)
    assert all(len(batch["video"]) == 4 for batch in loaded)
    assert 3 <= len(tally.clips) <= 8
    assert all(14 <= clip <= 25 for clip in tally.clips)
    assert caplog.text.count("can no longer be read") == 1
    for i in set(range(40)) - tally.clips:
        np.testing.assert_array_equal(dataset[i].video, meant[i])


def write_long(path: Path, num_frames: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 32, 3), np.uint8)
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.options = {"preset": "ultrafast"}
        stream.codec_context.gop_size = 50
        for i in range(num_frames):
            frame = np.ascontiguousarray(noise[i % 8 :][:32])
            frame[:4] = i % 250
            target.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        target.mux(stream.encode(None))
