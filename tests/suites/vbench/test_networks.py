"""Loading of the networks: what fits, what is refused, what is missing, and the frames they take."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import ViTModel

from arvid.contracts import UserError
from arvid.suites.vbench.dimensions import BUILDERS, WeightsOptions, build
from arvid.suites.vbench.frames import for_clip, for_clip_by_pillow, for_dino, for_musiq
from arvid.suites.vbench.networks import (
    load_clip,
    load_dino,
    load_laion_head,
    load_musiq,
    weights_hash,
)
from arvid.weights import KNOWN

# Each dimension with what its error must name when nothing is there.
NEEDS = {
    "temporal_flickering": "raft-things",
    "dynamic_degree": "raft-things",
    "aesthetic_quality": "laion-aesthetic-l14",
    "imaging_quality": "musiq-spaq",
    "subject_consistency": "facebook/dino-vitb16",
    "background_consistency": "openai/clip-vit-base-patch32",
    "appearance_style": "openai/clip-vit-base-patch32",
}


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", BUILDERS)
def test_missing_weights_are_named_with_their_source_and_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVID_WEIGHTS", str(tmp_path))
    absent = {key: tmp_path / "absent.pth" for key in ("laion_head", "raft", "musiq")}
    for options in (WeightsOptions(), WeightsOptions(**absent)):
        with pytest.raises(UserError) as error:
            build(name, options)
        if NEEDS[name] not in KNOWN:
            assert f"hf download {NEEDS[name]}" in str(error.value)
            continue
        known = KNOWN[NEEDS[name]]
        for part in (known.file, known.source, str(known.path)):
            assert part in str(error.value)


def test_flickering_without_the_static_filter_needs_no_weights() -> None:
    assert not build("temporal_flickering", WeightsOptions(static_filter=False)).networks


def test_published_laion_head_is_monotone_on_a_line(shared: Path) -> None:
    path = shared / "weights/laion_aesthetic/sa_0_4_vit_l_14_linear.pth"
    if not path.is_file():
        pytest.skip(f"needs the weights {path.name}, which are not here")
    head = load_laion_head(path)
    start = F.normalize(torch.randn(768, generator=torch.Generator().manual_seed(0)), dim=0)
    step = F.normalize(head.weight[0], dim=0)
    line = start + torch.linspace(-1, 1, 11)[:, None] * step
    scores = head(line)[:, 0]
    assert (scores.diff() > 0).all()
    # by steps of the weight's length, whatever the start
    assert scores.diff().tolist() == pytest.approx([0.2 * float(head.weight.norm())] * 10, rel=1e-3)
    other = path.with_name("sa_0_4_vit_b_32_linear.pth")
    with pytest.raises(UserError, match=r"b_32_linear.pth does not hold the weights"):
        load_laion_head(other)


def test_clip_features_have_unit_length(clip_folder: Path) -> None:
    clip = load_clip(str(clip_folder), "A test")
    for features in (clip(for_clip(picture(240, 320))), clip.text("oil painting")[None]):
        assert features.shape == (1, 768)
        assert float(features.norm()) == pytest.approx(1)
    assert not torch.allclose(clip.text("oil painting"), clip.text("van gogh"))


def test_dino_takes_any_shape_with_the_positions_of_the_authors(dino_folder: Path) -> None:
    dino = load_dino(str(dino_folder))
    plain = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False, layer_norm_eps=1e-6)

    def by_transformers(frames: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found = plain(pixel_values=frames, interpolate_pos_encoding=True)
        return F.normalize(found.last_hidden_state[:, 0], dim=-1)

    square, wide = for_dino(picture(100, 100)), for_dino(picture(90, 160))
    assert wide.shape == (1, 3, 224, 398)
    torch.testing.assert_close(dino(square), by_transformers(square))
    difference = (dino(wide) - by_transformers(wide)).abs().max()
    assert 1e-6 < difference < 0.05
    # A row of cells: each is read where the authors' factor of (14 + 0.1) / 14 puts it.
    table = dino.model.embeddings.position_embeddings
    found = dino._positions(torch.zeros(1, 1 + 14 * 24, 32), 224, 398)
    grid = table[:, 1:].reshape(1, 14, 14, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, scale_factor=(14.1 / 14, 24.1 / 14), mode="bicubic")
    torch.testing.assert_close(found[0, 1:], expected[0].flatten(1).T)


def test_another_network_in_the_folder_is_refused(clip_folder: Path) -> None:
    with pytest.raises(UserError, match="finds no fitting weights"):
        load_dino(str(clip_folder))


def test_musiq_is_built_by_pyiqa_and_filled_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = ModuleType("pyiqa.archs.musiq_arch")
    module.MUSIQ = lambda pretrained: nn.Linear(2, 1)  # type: ignore[attr-defined]
    saved = nn.Linear(2, 1)
    state = {f"module.{name}": value for name, value in saved.state_dict().items()}
    torch.save(state, tmp_path / "musiq.pth")
    monkeypatch.setitem(sys.modules, "pyiqa.archs.musiq_arch", None)
    with pytest.raises(UserError, match=r"pip install 'arvid\[vbench\]'"):
        load_musiq(tmp_path / "musiq.pth")
    for name in ("pyiqa", "pyiqa.archs"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert weights_hash(load_musiq(tmp_path / "musiq.pth")) == weights_hash(saved)


def test_frames_are_resized_as_floats_without_antialiasing() -> None:
    frames = picture(448, 600)
    raw = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    middle = F.interpolate(raw, size=(224, 300), mode="bicubic")[..., 38:262] / 255
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
    deviation = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)
    torch.testing.assert_close(for_clip(frames), (middle - mean) / deviation)
    assert middle.max() > 1  # not clamped
    pillow = for_clip_by_pillow(frames) * deviation + mean
    assert pillow.min() >= 0
    assert pillow.max() <= 1 + 1e-6
    assert pillow.std() < 0.7 * middle.std()  # antialiased
    torch.testing.assert_close(pillow * 255, (pillow * 255).round(), atol=1e-3, rtol=0)


def test_musiq_frames_are_only_made_smaller() -> None:
    assert for_musiq(picture(100, 200)).shape == (1, 3, 100, 200)
    assert for_musiq(picture(300, 700)).shape == (1, 3, 219, 512)  # 300 * 512 / 700 = 219.4
    assert for_musiq(picture(10, 20)).max() <= 1
