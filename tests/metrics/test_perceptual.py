"""LPIPS against published values, and the NBP code's variant of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import lpips
import pytest
import torch
from torch import Tensor

from arvid.contracts import UserError
from arvid.metrics.perceptual import BACKBONES, NBP_FRAME, Lpips, NbpPerceptual
from arvid.weights import KNOWN

import torchvision  # isort: skip  # after arvid, which mends its import


def clips(num: int = 2, seed: int = 0, size: int = 32, num_frames: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (num, num_frames, size, size, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded weights of VGG-16's features in torchvision's names: the published ones are half a gigabyte."""
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in torchvision.models.vgg16().state_dict().items()}
    state = {n: torch.randn(shape) * 0.03 for n, shape in shapes.items() if "features" in n}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path


def test_lpips_squeeze_gives_the_published_values(shared: Path) -> None:
    weights = shared / "weights/lpips_squeeze/squeezenet1_1_features.safetensors"
    if not weights.is_file():
        pytest.skip(f"needs the weights {weights.name}, which are not here")
    metric = Lpips("squeeze", backbone=weights)
    generator = torch.Generator().manual_seed(42)
    a, b = (torch.rand(2, 3, 100, 100, generator=generator) for _ in range(2))
    # The doctest of torchmetrics 1.x; frames come in [0, 1].
    assert metric.score_frames(a, b).tolist() == pytest.approx([0.1024, 0.0938], abs=6e-5)
    assert metric.name == "lpips-squeeze"
    assert metric.sha256.startswith("29dd9af4")
    metric.update(clips(), clips())
    assert metric.compute().value == pytest.approx(0)
    with pytest.raises(UserError, match="at least 32x32"):
        metric.update(clips(size=16), clips(size=16))


@pytest.mark.parametrize("net", sorted(BACKBONES))
def test_missing_lpips_weights_are_named_with_their_source(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = KNOWN[BACKBONES[net]]
    for given in (None, tmp_path / "none.pth"):
        with pytest.raises(UserError) as caught:
            Lpips(net, backbone=given)
        assert f"https://download.pytorch.org/models/{weights.file}" in str(caught.value)
        assert str(weights.path) in str(caught.value)
    assert weights.path.is_relative_to(tmp_path)


def test_other_lpips_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "x.pth")
    (tmp_path / "y.pth").write_bytes(b"<html>not found</html>")
    (tmp_path / "z.safetensors").write_bytes(b"<html>not found</html>")
    for name in ("x.pth", "y.pth", "z.safetensors"):
        with pytest.raises(UserError, match=f"{name} does not hold the weights"):
            Lpips("squeeze", backbone=tmp_path / name)
    with pytest.raises(UserError, match="alex, vgg, squeeze, not 'resnet'"):
        Lpips("resnet")


def test_nbp_variant_shows_raw_colours_of_frame_five_to_the_network(vgg: Path) -> None:
    generated, reference = clips(num_frames=7), clips(num_frames=7, seed=1)
    metric, usual = NbpPerceptual(backbone=vgg), Lpips("vgg", backbone=vgg)
    for each in (metric, usual):
        each.update(generated, reference)
    score = metric.compute()
    assert (metric.name, score.num_clips, len(score.per_frame)) == ("nbp-perceptual", 2, 1)
    # By the way of the NBP code: what undoes the normalisation goes before the layer that does it.
    shift, scale = usual.network.scaling_layer.shift, usual.network.scaling_layer.scale
    pair = [
        v[:, NBP_FRAME].permute(0, 3, 1, 2).float() / 255 * scale + shift
        for v in (generated, reference)
    ]
    expected = usual.network(*pair).flatten()
    assert score.frame_values.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert score.value != pytest.approx(usual.compute().per_frame[NBP_FRAME], rel=1e-2)


def test_nbp_variant_ignores_every_other_frame_and_needs_frame_five(vgg: Path) -> None:
    metric = NbpPerceptual(backbone=vgg)
    reference = clips(num_frames=6)
    generated = clips(num_frames=6, seed=1)
    generated[:, NBP_FRAME] = reference[:, NBP_FRAME]
    metric.update(generated, reference)
    assert metric.compute().value == 0
    with pytest.raises(UserError, match="clips of 5 frames have none"):
        metric.update(generated[:, :5], reference[:, :5])


def test_the_package_holds_the_heads_that_the_nbp_code_uses() -> None:
    heads = Path(lpips.__file__).parent / "weights/v0.1/vgg.pth"
    assert hashlib.md5(heads.read_bytes()).hexdigest() == "d507d7349b931f0638a25a48a722f98a"
