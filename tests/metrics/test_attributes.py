"""Attribute accuracy counts what it says, with a judge that is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arvid.metrics.attributes import CHANCE, NAMES, AttributeAccuracy
from arvid.metrics.sprites_net import SpritesNet

VIDEOS = torch.zeros(4, 5, 8, 8, 3, dtype=torch.uint8)
SEEN = {"shape": "circle", "colour": "red", "motion": "turns"}


class Judge(SpritesNet):
    """Sees the same in every clip."""

    def classify(self, videos: Tensor) -> list[dict[str, str]]:
        return [SEEN] * len(videos)


def asked(**changes: str) -> dict[str, str]:
    return {**SEEN, **changes}


def test_each_attribute_and_their_mean_are_counted() -> None:
    metric = AttributeAccuracy(Judge())
    wrong = asked(shape="square", colour="blue", motion="bounces")
    metric.update(VIDEOS[:1], [SEEN])
    metric.update(VIDEOS[:3], [asked(colour="blue"), asked(colour="green"), wrong])
    values = {name: float(value) for name, value in metric.compute().items()}
    assert tuple(values) == NAMES
    assert values["shape-accuracy"] == values["motion-accuracy"] == 0.75
    assert values["colour-accuracy"] == 0.25
    assert values["attribute-accuracy"] == pytest.approx(7 / 12)
    errors = metric.standard_errors()
    assert float(errors["shape-accuracy"]) == pytest.approx(0.25)
    assert set(errors) == set(NAMES)


def test_chance_is_one_over_the_number_of_values() -> None:
    assert CHANCE["shape-accuracy"] == 1 / 4
    assert CHANCE["colour-accuracy"] == CHANCE["motion-accuracy"] == 1 / 6
    assert CHANCE["attribute-accuracy"] == pytest.approx(7 / 36)


def test_merged_metrics_equal_one() -> None:
    left, right = AttributeAccuracy(Judge()), AttributeAccuracy(Judge())
    left.update(VIDEOS[:3], [SEEN] * 3)
    right.update(VIDEOS[:1], [asked(shape="cross")])
    left.merge_state(right)
    assert float(left.compute()["shape-accuracy"]) == 0.75


def test_wrong_input_is_refused() -> None:
    metric = AttributeAccuracy(Judge())
    with pytest.raises(ValueError, match="4 clips, but attributes of 1"):
        metric.update(VIDEOS, [SEEN])
    with pytest.raises(ValueError, match=r"shape must be one of circle, .* not 'heptagon'"):
        metric.update(VIDEOS[:1], [asked(shape="heptagon")])
    with pytest.raises(ValueError, match="colour must be one of"):
        metric.update(VIDEOS[:1], [{"shape": "circle", "motion": "turns"}])
    with pytest.raises(ValueError, match="uint8"):
        metric.update(VIDEOS.float(), [SEEN] * 4)
    with pytest.raises(ValueError, match="of no clips"):
        metric.compute()
