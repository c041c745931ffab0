"""What each named variant does to the frames, against the arithmetic of the implementation it stands for."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from arvid.contracts import UserError
from arvid.metrics.preprocessing import (
    PREPROCESSINGS,
    SIZE,
    Preprocessing,
    covering_size,
    get_preprocessing,
)
from arvid.weights import KNOWN


def videos(height: int, width: int, num: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (num, 2, height, width, 3), generator=generator, dtype=torch.uint8)


def tf1_bilinear(frame: Tensor, height: int, width: int, every: int = 1) -> Tensor:
    """TensorFlow 1's resize_bilinear of one frame (H, W), pixel by pixel (every so many of them)."""
    rows, columns = frame.shape
    out = torch.zeros(height, width)
    for i in range(0, height, every):
        for j in range(0, width, every):
            y, x = i * rows / height, j * columns / width
            top, left = int(y), int(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            upper = frame[top, left] + (frame[top, right] - frame[top, left]) * (x - left)
            lower = frame[bottom, left] + (frame[bottom, right] - frame[bottom, left]) * (x - left)
            out[i, j] = upper + (lower - upper) * (y - top)
    return out[::every, ::every]


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_every_variant_gives_the_networks_input(name: str) -> None:
    variant = PREPROCESSINGS[name]
    clips = videos(48, 80, num=2)
    video = variant(clips)
    assert variant.name == name
    assert variant.weights in KNOWN
    if variant.fit == "inside":
        assert torch.equal(video, clips.permute(0, 4, 1, 2, 3))
        return
    assert video.shape == (2, 3, 2, SIZE, SIZE)
    assert video.dtype == torch.float32
    assert -1.000001 < float(video.min()) < -0.9
    assert 0.9 < float(video.max()) < 1.000001


def test_the_table_of_published_variants_is_frozen() -> None:
    """Columns of the facts: weights, BatchNorm's epsilon, ddof, fit, grid, detour, rounding."""
    plain, script = "i3d-pretrained-400", "i3d-torchscript"
    expected = {
        "tf-reference": (plain, 1e-3, 1, "squash", "tf1", None, "nearest"),
        "teco": (plain, 1e-3, 1, "squash", "half-pixel", None, "nearest"),
        "magvit": (plain, 1e-3, 1, "squash", "tf1", None, "nearest"),
        "magvit-64": (plain, 1e-3, 1, "squash", "tf1", 64, "nearest"),
        "stylegan-v": (script, 1e-3, 0, "inside", "half-pixel", None, "nearest"),
        "nbp": (script, 1e-3, 1, "crop", "half-pixel", None, "nearest"),
        "nbp-64": (script, 1e-3, 1, "crop", "half-pixel", 64, "nearest"),
        "videogpt": (plain, 1e-5, 1, "crop", "half-pixel", None, "nearest"),
        "tats": (plain, 1e-5, 1, "squash", "half-pixel", None, "nearest"),
        "omnitokenizer": (plain, 1e-5, 1, "squash", "half-pixel", None, "truncate"),
        "cd-fvd": (plain, 1e-5, 0, "squash", "half-pixel", None, "nearest"),
    }
    found = {
        name: (v.weights, v.bn_eps, v.ddof, v.fit, v.grid, v.via, v.rounding)
        for name, v in PREPROCESSINGS.items()
        if not v.antialias
    }
    assert found == expected
    with pytest.raises(dataclasses.FrozenInstanceError):
        PREPROCESSINGS["nbp"].ddof = 0  # type: ignore[misc]


def test_tf1_grid_is_tensorflows() -> None:
    small = Preprocessing(name="t", source="", weights="i3d-pretrained-400", grid="tf1", via=10)
    clips = videos(7, 13)
    for grid in (dataclasses.replace(small, via=None), small):
        found = grid(clips)[0, 1, 1, ::5, ::5]
        frame = clips[0, 1, ..., 1].float()
        if grid.via:
            frame = tf1_bilinear(frame, 10, 10)
        expected = tf1_bilinear(frame, SIZE, SIZE, every=5) / 127.5 - 1
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_grids_differ_by_a_shift() -> None:
    """Half-pixel samples lie (in / out - 1) / 2 source pixels before those of TensorFlow 1."""
    ramp = torch.arange(112, dtype=torch.uint8).view(1, 1, 1, 112, 1).expand(1, 2, 112, 112, 3)
    tf1, half = (PREPROCESSINGS[name](ramp)[0, 0, 0, 0] for name in ("tf-reference", "tats"))
    shift = (tf1 - half)[10:-10] * 127.5
    torch.testing.assert_close(shift, torch.full_like(shift, 0.25), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["nbp", "videogpt"])
def test_crop_keeps_the_middle_of_the_covering_frame(name: str) -> None:
    clips = videos(30, 47)
    frames = clips[0].permute(0, 3, 1, 2).float() / 255
    wide = F.interpolate(frames, (224, math.ceil(47 * 224 / 30)), mode="bilinear")
    left = (wide.shape[-1] - 224) // 2
    expected = (wide[..., left : left + 224] - 0.5) * 2
    found = PREPROCESSINGS[name](clips)[0].transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_ceil_rule_is_kept_with_its_rounding_errors() -> None:
    assert covering_size(128, 128) == (224, 224)
    assert covering_size(240, 320) == (224, 299)
    assert covering_size(320, 240) == (299, 224)
    assert covering_size(100, 100) == (225, 224)


def test_squash_ignores_the_aspect_ratio() -> None:
    clips = videos(30, 47)
    frames = clips[0].permute(0, 3, 1, 2).float()
    expected = 2 * F.interpolate(frames, (224, 224), mode="bilinear") / 255 - 1
    found = PREPROCESSINGS["tats"](clips)[0].transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_detour_hides_detail_finer_than_its_pixels() -> None:
    fine = torch.zeros(1, 1, 128, 128, 3, dtype=torch.uint8)
    fine[:, :, :, ::2] = 255  # stripes of one pixel: their mean at 64 pixels
    assert PREPROCESSINGS["nbp"](fine).std() > 0.4
    torch.testing.assert_close(PREPROCESSINGS["nbp-64"](fine), torch.zeros(1, 3, 1, 224, 224))


def test_truncation_lowers_63_of_the_256_levels_by_one() -> None:
    levels = (torch.arange(SIZE * SIZE) % 256).to(torch.uint8)
    clips = levels.view(1, 1, SIZE, SIZE, 1).expand(-1, -1, -1, -1, 3)
    exact, lowered = (
        PREPROCESSINGS[name](clips)[0, 0, 0].flatten() for name in ("tats", "omnitokenizer")
    )
    steps = ((exact - lowered)[:256] * 127.5).round()
    assert steps.unique().tolist() == [0, 1]
    assert int(steps.sum()) == 63


def test_antialias_averages_shrinking_frames_only() -> None:
    aliased = dataclasses.replace(PREPROCESSINGS["antialiased"], antialias=False)
    stripes = torch.zeros(1, 1, 896, 896, 3, dtype=torch.uint8)
    stripes[:, :, :, ::4] = 255
    smooth = PREPROCESSINGS["antialiased"](stripes)[..., 8:-8]
    assert float(smooth.std()) < 0.01
    assert float(smooth.mean()) == pytest.approx(-0.5, abs=0.01)
    assert not torch.allclose(aliased(stripes)[..., 8:-8].mean(), torch.tensor(-0.5), atol=0.1)
    small = videos(64, 64)
    tolerance = 4 * 64 * torch.finfo().eps  # weights are differences of coordinates up to 64
    torch.testing.assert_close(
        PREPROCESSINGS["antialiased"](small), aliased(small), rtol=0, atol=tolerance
    )


def test_unknown_names_and_impossible_combinations_are_refused() -> None:
    with pytest.raises(UserError, match=r"no preprocessing 'nbp-46'.*Did you mean 'nbp-64'"):
        get_preprocessing("nbp-46")
    with pytest.raises(UserError, match="tf1 grid has no antialiasing"):
        dataclasses.replace(PREPROCESSINGS["magvit"], antialias=True)
    with pytest.raises(ValueError, match="uint8"):
        PREPROCESSINGS["tats"](torch.rand(1, 2, 8, 8, 3))
