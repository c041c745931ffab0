"""Scores that follow a clip over time: motion, and what sprites show."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from arvid.data.motion import motion_score
from arvid.data.sprites import Sprites
from arvid.evaluation.protocols import Protocol
from arvid.evaluation.scores import scores_for

PROTOCOL = Protocol(
    name="p",
    summary="",
    task="prediction",
    metrics=("motion", "attributes-over-time"),
    condition_frames=1,
    frames_per_step=4,
)


def sprites(num_frames: int) -> tuple[torch.Tensor, list]:  # type: ignore[type-arg]
    clips = list(Sprites(4, num_frames=num_frames, sizes=("large",), second=0, textured=0))
    return torch.from_numpy(np.stack([clip.video for clip in clips])), clips


def test_motion_is_that_of_the_data() -> None:
    videos, clips = sprites(9)
    score = scores_for(PROTOCOL)["motion"]
    measured = score.measure(videos, videos, clips)
    (value,) = score.values(measured, "p")
    assert value.value == pytest.approx(np.mean([motion_score(c.video) for c in clips]))
    still = score.measure(videos[:, :1].expand_as(videos), videos, clips)
    assert score.values(still, "p")[0].value == 0
    frames = score.frame_values(measured)["motion"]
    assert frames.shape == (4, 9)
    assert np.array_equal(frames[:, 0], frames[:, 1])


def test_attributes_are_lost_at_the_step_where_the_clip_changes() -> None:
    videos, clips = sprites(17)
    videos = videos[:, 1:].clone()
    videos[:, 8:] = 40  # nothing but background in the last two steps
    score = scores_for(PROTOCOL)["attributes-over-time"]
    measured = score.measure(videos, videos, clips)
    colour = score.frame_values(measured)["colour-shown"]
    assert colour.shape == (4, 16)
    assert (colour[:, :8] == 100).all()
    assert colour[:, 12:].mean() < 100
    names = {value.name: value.value for value in score.values(measured, "p")}
    assert names["colour-shown"] == pytest.approx(colour.mean())


def test_an_image_stands_still() -> None:
    videos, clips = sprites(9)
    protocol = dataclasses.replace(
        PROTOCOL, task="generation", condition_frames=0, frames_per_step=1
    )
    score = scores_for(protocol)["attributes-over-time"]
    assert score.measure(videos[:, :1], videos[:, :1], clips)["hits"].shape == (4, 1, 2)
