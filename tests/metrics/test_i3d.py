"""The I3D against the facts of the published graph, and its files: recognised by content, refused with the reason."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arvid import weights
from arvid.contracts import UserError
from arvid.files import checksum_file
from arvid.metrics import i3d
from arvid.metrics.i3d import (
    I3D,
    find_i3d,
    load_i3d,
    load_torchscript_i3d,
    same_pad,
    seeded_i3d,
)

pytestmark = [  # TorchScript is what StyleGAN-V publishes
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

OUTPUTS = {
    "Conv3d_1a_7x7": (64, 8, 112, 112),
    "MaxPool3d_2a_3x3": (64, 8, 56, 56),
    "Conv3d_2b_1x1": (64, 8, 56, 56),
    "Conv3d_2c_3x3": (192, 8, 56, 56),
    "MaxPool3d_3a_3x3": (192, 8, 28, 28),
    "Mixed_3b": (256, 8, 28, 28),
    "Mixed_3c": (480, 8, 28, 28),
    "MaxPool3d_4a_3x3": (480, 4, 14, 14),
    "Mixed_4b": (512, 4, 14, 14),
    "Mixed_4c": (512, 4, 14, 14),
    "Mixed_4d": (512, 4, 14, 14),
    "Mixed_4e": (528, 4, 14, 14),
    "Mixed_4f": (832, 4, 14, 14),
    "MaxPool3d_5a_2x2": (832, 2, 7, 7),
    "Mixed_5b": (832, 2, 7, 7),
    "Mixed_5c": (1024, 2, 7, 7),
    "avg_pool": (1024, 1, 1, 1),
    "logits": (400, 1, 1, 1),
}
"""C, T, H, W after each layer for 16 frames of 224x224."""


@pytest.fixture(scope="module")
def net() -> I3D:
    """A seeded network whose BatchNorms have statistics of their own, as trained ones have."""
    net = seeded_i3d(bn_eps=1e-3)
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return net


def video(num_frames: int = 9, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, num_frames, 224, 224, generator=generator) * 2 - 1


def test_counts_of_the_published_network(net: I3D) -> None:
    assert sum(p.numel() for p in net.parameters()) == 12_697_264
    state = net.state_dict()
    assert len(state) == 344
    gammas = sum(t.numel() for name, t in state.items() if name.endswith("bn.weight"))
    betas = sum(t.numel() for name, t in state.items() if name.endswith("bn.bias"))
    assert 12_697_264 - gammas - betas == 12_682_704
    kinds = [type(module) for module in net.modules()]
    assert kinds.count(nn.Conv3d) == 58
    assert kinds.count(nn.BatchNorm3d) == 57
    assert not net.training


def test_names_of_the_published_checkpoint(net: I3D) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["Conv3d_1a_7x7.bn.running_mean"] == (64,)
    assert shapes["Mixed_3b.b0.conv3d.weight"] == (64, 192, 1, 1, 1)
    assert shapes["Mixed_4e.b1b.conv3d.weight"] == (288, 144, 3, 3, 3)
    assert shapes["Mixed_5b.b2b.conv3d.weight"] == (128, 32, 3, 3, 3)
    assert shapes["Mixed_5c.b3b.bn.weight"] == (128,)
    assert shapes["logits.conv3d.bias"] == (400,)
    assert "logits.bn.weight" not in shapes
    assert "Conv3d_1a_7x7.conv3d.bias" not in shapes


def test_shapes_after_each_layer(net: I3D) -> None:
    x = torch.zeros(1, 3, 16, 224, 224, device="meta")
    shapes = {}
    for name, layer in I3D(bn_eps=1e-3).to("meta").named_children():
        x = layer(x)
        shapes[name] = tuple(x.shape[1:])
    assert shapes == OUTPUTS


@pytest.mark.parametrize(("num_frames", "steps"), [(9, 1), (16, 1), (17, 2), (24, 2), (128, 15)])
def test_steps_that_are_averaged(num_frames: int, steps: int) -> None:
    x = torch.zeros(2, 3, num_frames, 224, 224, device="meta")
    net = I3D(bn_eps=1e-3).to("meta")
    assert net(x).shape == (2, 400)
    for layer in net:
        x = layer(x)
    assert x.shape == (2, 400, steps, 1, 1)


def test_too_few_frames_and_other_sizes_are_refused(net: I3D) -> None:
    with pytest.raises(UserError, match="at least 9 frames, got 8"):
        net(video(8))
    with pytest.raises(ValueError, match="224x224"):
        net(torch.zeros(1, 3, 9, 128, 128))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (16, 7, 2, (2, 3)),
        (9, 7, 2, (3, 3)),
        (5, 3, 1, (1, 1)),
        (8, 2, 2, (0, 0)),
        (5, 2, 2, (0, 1)),
    ],
)
def test_padding_is_tensorflows(
    size: int, kernel: int, stride: int, expected: tuple[int, int]
) -> None:
    x = torch.ones(1, 1, size, 4, 4)
    padded = same_pad(x, (kernel, 1, 1), (stride, 1, 1))[0, 0, :, 0, 0]
    front, back = expected
    assert padded.tolist() == [0.0] * front + [1.0] * size + [0.0] * back
    assert (len(padded) - kernel) // stride + 1 == -(-size // stride)


def test_pooling_with_zeros_equals_pooling_without_them() -> None:
    """TensorFlow pads with minus infinity; after a ReLU zeros do the same."""
    x = torch.rand(1, 2, 5, 7, 7)
    found = i3d.MaxPool((3, 3, 3), (1, 1, 1))(x)
    torch.testing.assert_close(found, F.max_pool3d(x, 3, 1, padding=1))


def test_epsilon_reaches_every_batch_norm() -> None:
    for eps in (1e-3, 1e-5):
        norms = [m.eps for m in I3D(bn_eps=eps).modules() if isinstance(m, nn.BatchNorm3d)]
        assert norms == [eps] * 57


# --- files


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, path: Path) -> None:
    """Let the file at `path` count as the published one."""
    known = dataclasses.replace(
        weights.KNOWN[name], digest=f"git-blob:{checksum_file(path, 'git-blob')}"
    )
    monkeypatch.setitem(weights.KNOWN, name, known)


class Scripted(nn.Module):
    """A stand-in with the call of StyleGAN-V's TorchScript file."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        if resize:
            x = F.interpolate(x.float(), size=[x.shape[2], 224, 224], mode="trilinear")
        if rescale:
            x = 2 * x / 255 - 1
        logits = self.net(x)
        return logits if return_features else logits.softmax(1)


@pytest.fixture(scope="module")
def files(net: I3D, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same weights as a plain checkpoint (as converted: no counts of batches) and as TorchScript."""
    folder = tmp_path_factory.mktemp("i3d")
    state = OrderedDict(
        (name, tensor) for name, tensor in net.state_dict().items() if "num_batches" not in name
    )
    assert len(state) == 287
    torch.save(state, folder / "plain.pt")
    traced = torch.jit.trace(net, video(), check_trace=False)
    torch.jit.script(Scripted(traced)).save(str(folder / "script.pt"))
    return folder / "plain.pt", folder / "script.pt"


def test_both_loaders_give_the_same_logits(net: I3D, files: tuple[Path, Path]) -> None:
    clip = video(seed=3)
    plain = load_i3d(files[0], bn_eps=1e-3)(clip)
    script = load_torchscript_i3d(files[1], inside=False)(clip)
    assert float(plain.std()) > 0.5
    torch.testing.assert_close(plain, script, rtol=1e-5, atol=1e-5)
    other = load_i3d(files[0], bn_eps=1e-5)(clip)
    assert 1e-4 < float((other - plain).abs().max()) < 0.5


def test_the_script_takes_levels_when_it_resizes_itself(files: tuple[Path, Path]) -> None:
    levels = torch.randint(0, 256, (1, 3, 9, 224, 224), dtype=torch.uint8)
    inside = load_torchscript_i3d(files[1], inside=True)(levels)
    outside = load_torchscript_i3d(files[1], inside=False)(levels.float() / 127.5 - 1)
    torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="at least 9 frames"):
        load_torchscript_i3d(files[1], inside=True)(levels[:, :, :8])


def test_published_files_are_recognised_by_content(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, script = files
    pretend(monkeypatch, "i3d-pretrained-400", plain)
    pretend(monkeypatch, "i3d-torchscript", script)
    assert find_i3d("i3d-pretrained-400", plain) == plain
    with pytest.raises(UserError, match=r"is i3d_torchscript\.pt, which this preprocessing does"):
        find_i3d("i3d-pretrained-400", script)
    monkeypatch.setenv("ARVID_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"needs i3d_torchscript\.pt, which is missing"):
        find_i3d("i3d-torchscript")
    (tmp_path / "i3d_torchscript.pt").write_bytes(script.read_bytes())
    assert find_i3d("i3d-torchscript").parent == tmp_path


@pytest.mark.parametrize(("start", "name"), i3d.LOOK_ALIKES.items())
def test_imagenet_look_alikes_are_refused_by_name(
    start: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "i3d_pretrained_400.pt"
    path.write_bytes(b"imagenet")
    monkeypatch.setattr(i3d, "checksum_file", lambda *_: start + "0" * 32)
    monkeypatch.setenv("ARVID_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match="initialised from ImageNet") as error:
        find_i3d("i3d-pretrained-400")
    assert name in str(error.value)
    assert "TATS" in str(error.value)  # where the right one comes from


def test_unknown_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        find_i3d("i3d-torchscript", tmp_path / "nowhere.pt")
    (tmp_path / "half.pt").write_bytes(b"weights")
    with pytest.raises(UserError, match="not a published I3D"):
        find_i3d("i3d-torchscript", tmp_path / "half.pt")
    with pytest.raises(UserError, match="cannot be read as TorchScript"):
        load_torchscript_i3d(tmp_path / "half.pt", inside=True)
    with pytest.raises(UserError, match="does not hold the weights of this I3D"):
        load_i3d(tmp_path / "half.pt", bn_eps=1e-3)
    torch.save({"logits.conv3d.bias": torch.zeros(400)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="does not hold the weights of this I3D"):
        load_i3d(tmp_path / "other.pt", bn_eps=1e-3)
