"""Action accuracy: real clips reach all of it, still ones the share of "stay", other clips' actions about chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arvid import registry
from arvid.contracts import Clip, UserError
from arvid.data.keyboard_sprites import KeyboardSprites
from arvid.evaluation.protocols import get_protocol
from arvid.metrics.actions import actions_shown, centroids, obeyed

CLIPS = list(KeyboardSprites(96, seed=5))
VIDEOS = torch.from_numpy(np.stack([clip.video for clip in CLIPS]))
ACTIONS = torch.tensor([clip.conditions["actions"] for clip in CLIPS])


def test_real_clips_obey() -> None:
    assert obeyed(VIDEOS, ACTIONS).all()


def test_still_clips_obey_stay_alone() -> None:
    still = VIDEOS[:, :1].expand_as(VIDEOS)
    assert torch.equal(obeyed(still, ACTIONS), ACTIONS[:, 1:] == 0)


def test_other_actions_are_obeyed_by_chance() -> None:
    assert obeyed(VIDEOS, ACTIONS.roll(1, 0)).float().mean() == pytest.approx(0.2, abs=0.06)


def test_frames_without_a_shape_obey_nothing() -> None:
    videos = VIDEOS[:1].clone()
    videos[:, 4] = 30
    assert centroids(videos)[0, 4].isnan().all()
    assert actions_shown(videos)[0, 3:5].tolist() == [-1, -1]
    noise = torch.randint(256, VIDEOS.shape, dtype=torch.uint8)
    assert obeyed(noise, ACTIONS).float().mean() < 0.3


@pytest.mark.parametrize("name", ["keyboard-sprites-generation", "keyboard-sprites-prediction"])
def test_the_score_is_registered_and_knows_which_frames_it_sees(name: str) -> None:
    protocol = get_protocol(name)
    score = registry.get("metrics", "action-accuracy").for_protocol(protocol)
    seen = VIDEOS[:, protocol.scored]
    measured = score.measure(seen, seen, CLIPS)
    (value,) = score.values(measured, name)
    assert (value.value, value.count, value.unit) == (100, len(CLIPS), "%")
    assert score.frame_values(measured)["action-accuracy"].shape == seen.shape[:2]


def test_frames_after_given_ones_have_their_own_actions() -> None:
    score = registry.get("metrics", "action-accuracy")(first_frame=3)
    assert score.measure(VIDEOS[:, 3:], VIDEOS[:, 3:], CLIPS)["hits"].min() == 100


def test_clips_without_actions_are_refused() -> None:
    with pytest.raises(UserError, match="these clips have no actions"):
        registry.get("metrics", "action-accuracy")().measure(
            VIDEOS[:1], VIDEOS[:1], [Clip(video=CLIPS[0].video)]
        )
