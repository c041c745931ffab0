"""PatchGAN: the published geometry, linear logits, single frames, no statistics across clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from arvid.contracts import UserError
from arvid.nn.discriminator import PatchDiscriminator


def small(**options: int | bool) -> PatchDiscriminator:
    return PatchDiscriminator(channels=16, num_layers=2, **options)  # type: ignore[arg-type]


def test_the_published_size() -> None:
    with torch.device("meta"):
        discriminator = PatchDiscriminator()
        logits = discriminator(torch.empty(2, 3, 17, 128, 128))
        image = discriminator(torch.empty(2, 3, 1, 128, 128))
    assert logits.shape == (2, 1, 3, 14, 14)
    assert image.shape == (2, 1, 1, 14, 14)
    kernels = [m.weight.shape for m in discriminator.modules() if isinstance(m, nn.Conv3d)]
    assert [shape[0] for shape in kernels] == [64, 128, 256, 512, 1]
    assert {tuple(shape[2:]) for shape in kernels} == {(3, 4, 4)}


def test_a_patch_has_70_pixels() -> None:
    discriminator = PatchDiscriminator(channels=16, across_time=False)
    for name, layer in discriminator.layers.named_children():
        if isinstance(layer, nn.GroupNorm):  # it looks at the whole frame
            discriminator.layers[int(name)] = nn.Identity()
    video = torch.randn(1, 3, 1, 128, 128, requires_grad=True)
    discriminator(video)[0, 0, 0, 7, 7].backward()
    assert video.grad is not None
    seen = video.grad[0].abs().sum((0, 1))
    assert [int((seen.sum(axis) > 0).sum()) for axis in (0, 1)] == [70, 70]


def test_a_two_dimensional_one_judges_each_frame_alone() -> None:
    video = torch.randn(1, 3, 5, 32, 32)
    changed = video.clone()
    changed[:, :, 1] += 1
    flat, deep = small(across_time=False), small(across_time=True)
    # group norm spans the clip: without it, what is left of the change lies in its own frame
    for layer in flat.layers:
        if isinstance(layer, nn.GroupNorm):
            layer.forward = lambda x: x  # type: ignore[method-assign]
    difference = (flat(video) - flat(changed)).abs().amax((0, 1, 3, 4))
    assert difference[1] > 0
    assert difference[[0, 2, 3, 4]].max() == 0
    assert deep(video).shape[2] == 2
    assert (deep(video) - deep(changed)).abs().max() > 0


def test_logits_are_linear(rounding: Callable[..., Any]) -> None:
    discriminator, video = small(), torch.randn(2, 3, 5, 32, 32)
    last = discriminator.layers[-1]
    assert isinstance(last, nn.Conv3d)
    assert last.bias is not None
    before = discriminator(video)
    with torch.no_grad():
        last.bias -= 5
    expected = before - 5  # the bias is a term of the last convolution's sums
    tolerance = rounding(expected, last.weight[0].numel())
    torch.testing.assert_close(discriminator(video), expected, **tolerance)
    assert (before.min() < 0 < before.max()) or before.std() > 0


def test_clips_are_judged_alone(rounding: Callable[..., Any]) -> None:
    discriminator, video = small(), torch.randn(3, 3, 5, 32, 32)
    together = discriminator(video)
    tolerance = rounding(together, discriminator)
    torch.testing.assert_close(discriminator(video[1:2]), together[1:2], **tolerance)


def test_impossible_sizes() -> None:
    with pytest.raises(UserError, match="at least 12x12"):
        small()(torch.zeros(1, 3, 5, 8, 32))
    with pytest.raises(UserError, match="multiple of 16"):
        PatchDiscriminator(channels=20)
