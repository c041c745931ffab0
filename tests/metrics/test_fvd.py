"""The feature networks of FVD: what they take and give, and that their numbers do not depend on how they are run."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.files import checksum_file, sha256_file
from arvid.metrics import inference
from arvid.metrics.fvd import I3DFeatures, fvd_features, seeded_fvd_features
from arvid.metrics.jedi import JediFeatures, jedi_features, load_vjepa
from arvid.metrics.preprocessing import PREPROCESSINGS
from arvid.metrics.videomae import VideoMAEFeatures, load_videomae, videomae_features
from arvid.weights import KNOWN

ROOT = Path(__file__).parents[2]


def videos(num: int, num_frames: int = 9, size: int = 24, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (num, num_frames, size, size, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def network() -> I3DFeatures:
    return seeded_fvd_features("tats")


@pytest.fixture(scope="module")
def features(network: I3DFeatures) -> Tensor:
    """Of the two clips `videos(2)`."""
    return network(videos(2))


def test_gives_four_hundred_logits_of_full_precision(
    network: I3DFeatures, features: Tensor
) -> None:
    assert features.shape == (2, 400)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(videos(1)), features[:1], rtol=1e-5, atol=1e-5)


def test_the_batch_does_not_matter(
    network: I3DFeatures, features: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "FRAMES_AT_ONCE", 1)
    seen: list[int] = []
    hook = network.network.register_forward_hook(lambda _, x, y: seen.append(len(y)))
    torch.testing.assert_close(network(videos(2)), features, rtol=1e-4, atol=1e-4)
    hook.remove()
    assert seen == [1, 1]


def test_tf32_is_off_inside_and_as_before_outside() -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = True
        with inference.full_precision("cpu"):
            assert [backend.allow_tf32 for backend in backends] == [False, False]
        assert [backend.allow_tf32 for backend in backends] == [True, True]
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


def test_too_few_frames_and_other_types_are_refused(network: I3DFeatures) -> None:
    with pytest.raises(UserError, match="at least 9 frames, got 8"):
        network(videos(1, num_frames=8))
    with pytest.raises(ValueError, match="uint8"):
        network(videos(1).float())


def test_random_weights_say_so() -> None:
    network = seeded_fvd_features("nbp-64", seed=3)
    assert network.name == "i3d-random-3 (nbp-64)"
    assert network.sha256 is None
    with pytest.raises(UserError, match="stylegan-v happens in its weights file"):
        seeded_fvd_features("stylegan-v")


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_missing_weights_are_an_error_that_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVID_WEIGHTS", str(tmp_path))
    known = KNOWN[PREPROCESSINGS[name].weights]
    with pytest.raises(UserError) as error:
        fvd_features(name)
    for part in (known.file, known.source, str(known.path)):
        assert part in str(error.value)


def test_published_weights_give_name_and_hash(
    network: I3DFeatures, features: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.pt"
    torch.save(network.network.state_dict(), path)
    with pytest.raises(UserError, match="not a published I3D"):
        fvd_features("tats", weights=path)
    known = KNOWN["i3d-pretrained-400"]
    monkeypatch.setitem(
        KNOWN,
        "i3d-pretrained-400",
        type(known)(**{**vars(known), "digest": f"git-blob:{checksum_file(path, 'git-blob')}"}),
    )
    loaded = fvd_features("tats", weights=path)
    assert loaded.name == "i3d-k400 (tats)"
    assert loaded.sha256 == sha256_file(path)
    torch.testing.assert_close(loaded(videos(1)), features[:1], rtol=1e-5, atol=1e-5)


# --- over time


# --- what the sensitivity benchmark does to clips


def test_spoilt_clips_are_spoilt_more_and_more() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "fvd" / "sensitivity.py"))
    smooth = torch.arange(16, dtype=torch.uint8).view(1, 16, 1, 1, 1) * 8
    clips = (smooth + torch.arange(24, dtype=torch.uint8).view(24, 1)).expand(2, 16, 24, 24, 3)
    clips = clips.contiguous()
    clips[:, :, 12:, 12:] += 60  # an edge to blur
    for spoil, amounts, _ in script["SPOILERS"].values():
        spoilt = [spoil(clips, amount) for amount in amounts]
        assert all(x.dtype == torch.uint8 and x.shape == clips.shape for x in spoilt)
        changes = [float((x.float() - clips.float()).abs().mean()) for x in spoilt]
        assert 0 < changes[0] < changes[1] < changes[2]
    moved = (script["shuffle"](clips, 0.25) != clips).flatten(2).any(2).sum(1)
    assert moved.tolist() == [4, 4]
    rows = [{"spoilt by": name, "distance": x} for name in script["SPOILERS"] for x in (2, 3, 4)]
    floor = {"spoilt by": "nothing", "distance": 1}
    assert script["is_monotone"]([floor, *rows])
    rows[4]["distance"] = 2
    assert not script["is_monotone"]([floor, *rows])


# --- the optional feature networks, with stand-ins of the packages' networks


class Patches(nn.Module):
    """Tokens (B, N, 6) of (B, 3, 16, 224, 224), and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv3d(3, 6, (2, 56, 56), stride=(2, 56, 56))

    def forward(self, video: Tensor) -> Tensor:
        return self.project(video).flatten(2).transpose(1, 2)

    def forward_features(self, video: Tensor) -> Tensor:
        return self(video).mean(1)


class Pool(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(1, keepdim=True)


def test_videomae_takes_frames_in_unit_range() -> None:
    clips = videos(5, num_frames=16, size=224)
    network = VideoMAEFeatures(Patches(), num_features=6)
    expected = network.network.forward_features(clips.permute(0, 4, 1, 2, 3) / 255)
    torch.testing.assert_close(network(clips), expected, rtol=1e-4, atol=1e-5)
    assert network.num_features == 6
    with pytest.raises(UserError, match="16 frames, got 9"):
        network(videos(1))


def test_jedi_takes_imagenets_mean_and_deviation_out() -> None:
    levels = torch.tensor([124, 116, 104], dtype=torch.uint8)  # ImageNet's mean, rounded
    network = JediFeatures(Patches(), Pool(), num_features=6)
    found = network(levels.expand(2, 16, 30, 40, 3).contiguous())
    bias = network.encoder.get_parameter("project.bias")
    torch.testing.assert_close(found, bias.expand(2, 6), rtol=0, atol=0.02)
    with pytest.raises(UserError, match="16 frames, got 9"):
        network(videos(1))


@pytest.mark.parametrize(
    ("build", "package", "advice"),
    [
        (videomae_features, "cdfvd", r"pip install 'arvid\[cd-fvd\]'"),
        (jedi_features, "vjepa", "pip install --no-deps vjepa==0.1.2"),
    ],
)
def test_missing_packages_name_their_command(
    build: object, package: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    assert callable(build)
    with pytest.raises(UserError, match=advice):
        build()


def test_checkpoints_of_the_optional_networks(tmp_path: Path) -> None:
    saved, loaded = Patches(), Patches()
    torch.save({"module": saved.state_dict()}, tmp_path / "mae.pth")
    load_videomae(loaded, tmp_path / "mae.pth")
    assert torch.equal(loaded.project.weight, saved.project.weight)
    wrapped = {f"module.backbone.{name}": x for name, x in saved.state_dict().items()}
    torch.save({"target_encoder": wrapped, "epoch": 3}, tmp_path / "vjepa.pth")
    loaded = Patches()
    load_vjepa(loaded, tmp_path / "vjepa.pth", "target_encoder")
    assert torch.equal(loaded.project.weight, saved.project.weight)
    with pytest.raises(UserError, match="does not hold the V-JEPA weights 'classifier'"):
        load_vjepa(loaded, tmp_path / "vjepa.pth", "classifier")
    with pytest.raises(UserError, match="does not hold the weights of VideoMAE"):
        load_videomae(Pool(), tmp_path / "mae.pth")
