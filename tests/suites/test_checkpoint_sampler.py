"""Clips by captions from a checkpoint of arvid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from arvid.contracts import UserError
from arvid.suites.checkpoint_sampler import CheckpointSampler
from arvid.training.generator_module import load_generator

CAPTIONS = ["a red square", "a small blue circle bounces"]


def test_the_same_captions_and_seed_give_the_same_clips(trained_run: Path) -> None:
    sampler = CheckpointSampler(load_generator(trained_run))
    first, again, other = (sampler(CAPTIONS, seed) for seed in (1, 1, 2))
    assert first.shape == (2, 17, 32, 32, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    shorter = CheckpointSampler(sampler.model, num_frames=5)
    assert shorter(CAPTIONS[:1], 1).shape == (1, 5, 32, 32, 3)


def test_it_says_what_it_is_as_plain_data(trained_run: Path) -> None:
    sampler = CheckpointSampler(load_generator(trained_run))
    described = sampler.describe(trained_run)
    assert (described["kind"], described["name"]) == ("checkpoint", trained_run.name)
    assert len(described["checkpoint_sha256"]) == 64
    assert described["setting_hash"] == sampler.model.description["setting_hash"]
    json.dumps(described, allow_nan=False)


def test_conditions_that_a_model_lacks_are_refused(trained_run: Path) -> None:
    model = load_generator(trained_run)
    with pytest.raises(UserError, match="trained without this condition"):
        CheckpointSampler(model, values={"motion": 3.0})
    with pytest.raises(UserError, match="6 frames do not fit"):
        CheckpointSampler(model, num_frames=6)
    model.conditioner.text = None
    with pytest.raises(UserError, match="cannot follow prompts"):
        CheckpointSampler(model)
