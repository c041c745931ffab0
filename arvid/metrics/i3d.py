"""I3D (arXiv:1705.07750), RGB stream, trained on Kinetics-400 from scratch: the feature network of FVD.

Inception-v1 with 3-D kernels. FVD's features are the 400 class logits before softmax, averaged over the remaining
time steps. Padding is TensorFlow's SAME, computed from the input size. Module names are those of
`i3d_pretrained_400.pt` (VideoGPT's conversion of the TF-Hub module, also in TATS and cd-fvd), so the file loads without
a mapping. StyleGAN-V's `i3d_torchscript.pt` is the same network as TorchScript.

Files are identified by content. ImageNet-initialised I3D weights are also in circulation. They give different
features, and a distance over them is not FVD.

Letters: B batch, C channels, T H W frames and pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.contracts import UserError
from arvid.files import checksum_file
from arvid.metrics.preprocessing import SIZE
from arvid.weights import KNOWN, locate

NUM_LOGITS = 400
MIN_FRAMES = 9
"""Fewer frames leave one time step before the last pooling, which needs two."""

LOOK_ALIKES = {
    "73a4fd1d": "piergiaj's rgb_imagenet.pt",
    "2a7c22e2": "hassony2's model_rgb.pth (v-iashin's i3d_rgb.pt)",
}
"""ImageNet-initialised weights, by the first digits of their git blob id."""

Triple = tuple[int, int, int]

_MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
"""Input channels, and output channels of the branches b0, b1a, b1b, b2a, b2b and b3b."""


class I3D(nn.Sequential):
    """Video (B, 3, T, 224, 224) in [-1, 1], T >= 9 -> logits (B, 400); in evaluation mode from the start.

    Args:
        bn_eps: epsilon of every BatchNorm: 1e-3 as TensorFlow, 1e-5 as VideoGPT and code derived from it.
    """

    def __init__(self, *, bn_eps: float) -> None:
        super().__init__()
        self.add_module("Conv3d_1a_7x7", Unit(3, 64, (7, 7, 7), (2, 2, 2), bn_eps=bn_eps))
        self.add_module("MaxPool3d_2a_3x3", MaxPool((1, 3, 3), (1, 2, 2)))
        self.add_module("Conv3d_2b_1x1", Unit(64, 64, bn_eps=bn_eps))
        self.add_module("Conv3d_2c_3x3", Unit(64, 192, (3, 3, 3), bn_eps=bn_eps))
        self.add_module("MaxPool3d_3a_3x3", MaxPool((1, 3, 3), (1, 2, 2)))
        self._add_mixed("3", bn_eps)
        self.add_module("MaxPool3d_4a_3x3", MaxPool((3, 3, 3), (2, 2, 2)))
        self._add_mixed("4", bn_eps)
        self.add_module("MaxPool3d_5a_2x2", MaxPool((2, 2, 2), (2, 2, 2)))
        self._add_mixed("5", bn_eps)
        self.add_module("avg_pool", nn.AvgPool3d((2, 7, 7), stride=1))
        self.add_module("logits", Unit(1024, NUM_LOGITS, bn_eps=None))
        self.eval().requires_grad_(False)

    def _add_mixed(self, stage: str, bn_eps: float) -> None:
        for name, (inputs, widths) in _MIXED.items():
            if name.startswith(f"Mixed_{stage}"):
                self.add_module(name, Mixed(inputs, widths, bn_eps=bn_eps))

    def forward(self, video: Float[Tensor, "b 3 t 224 224"]) -> Float[Tensor, "b 400"]:
        """Raises UserError for fewer than 9 frames, and ValueError unless frames are 224x224."""
        check_num_frames(video.shape[2])
        if video.shape[-2:] != (SIZE, SIZE):
            raise ValueError(f"I3D takes frames of {SIZE}x{SIZE}, got {tuple(video.shape)}.")
        x = video
        for layer in self:
            x = layer(x)
        return x.mean((2, 3, 4))  # of (B, 400, T', 1, 1)


class Unit(nn.Module):
    """Convolution with SAME padding, then BatchNorm and ReLU. With `bn_eps` None: a convolution with bias only."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Triple = (1, 1, 1),
        stride: Triple = (1, 1, 1),
        *,
        bn_eps: float | None,
    ) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=bn_eps is None)
        self.bn = None if bn_eps is None else nn.BatchNorm3d(outputs, eps=bn_eps)
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(same_pad(x, self.kernel, self.stride))
        return x if self.bn is None else F.relu(self.bn(x), inplace=True)


class MaxPool(nn.Module):
    """Max pooling with SAME padding by zeros. Zeros are correct here because every input comes from a ReLU."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(same_pad(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Inception block of four parallel branches: 1x1 | 1x1, 3x3 | 1x1, 3x3 | pool, 1x1."""

    def __init__(self, inputs: int, widths: Sequence[int], *, bn_eps: float) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = Unit(inputs, b0, bn_eps=bn_eps)
        self.b1a = Unit(inputs, b1a, bn_eps=bn_eps)
        self.b1b = Unit(b1a, b1b, (3, 3, 3), bn_eps=bn_eps)
        self.b2a = Unit(inputs, b2a, bn_eps=bn_eps)
        self.b2b = Unit(b2a, b2b, (3, 3, 3), bn_eps=bn_eps)
        self.b3a = MaxPool((3, 3, 3), (1, 1, 1))
        self.b3b = Unit(inputs, b3b, bn_eps=bn_eps)

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x)))
        return torch.cat(branches, dim=1)


def same_pad(x: Float[Tensor, "b c t h w"], kernel: Triple, stride: Triple) -> Tensor:
    """Zero padding of (T, H, W) as TensorFlow's SAME: the smaller half comes first."""
    pads: list[int] = []  # F.pad lists the last axis first
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        # TensorFlow: (ceil(size / s) - 1) * s + k - size, which depends on size only modulo s
        total = max(k - (size % s or s), 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads) if any(pads) else x


def check_num_frames(num_frames: int) -> None:
    """Raise UserError for clips too short for I3D."""
    if num_frames < MIN_FRAMES:
        raise UserError(
            f"I3D (for FVD) needs clips of at least {MIN_FRAMES} frames, got {num_frames}."
        )


class TorchScriptI3D(nn.Module):
    """StyleGAN-V's TorchScript I3D: logits (B, 400).

    Args:
        script: the loaded file; called as (x, rescale, resize, return_features).
        inside: whether the script resizes and rescales. Then the input is levels uint8 (B, 3, T, H, W), otherwise
            video (B, 3, T, 224, 224) in [-1, 1].
    """

    def __init__(self, script: nn.Module, *, inside: bool) -> None:
        super().__init__()
        self.script = script
        self.inside = inside

    def forward(self, x: Tensor) -> Float[Tensor, "b 400"]:
        check_num_frames(x.shape[2])
        return self.script(x, rescale=self.inside, resize=self.inside, return_features=True)


def find_i3d(name: str, path: str | Path | None = None) -> Path:
    """Checked path of the I3D file `name` of `arvid.weights.KNOWN`: `path`, or the file in the weights folder.

    Raises UserError if it is missing or is a different file, with a reason for known ImageNet-initialised files.
    """
    known = KNOWN[name]
    found = Path(path) if path is not None else known.path
    if not found.is_file():
        if path is None:
            return locate(name)  # downloads it, or raises
        raise UserError(f"There is no file {found}. {known.advice}")
    blob = checksum_file(found, "git-blob")
    if f"git-blob:{blob}" == known.digest:
        return found
    raise UserError(f"{found} {_what_it_is(blob)} {known.advice}")


def load_i3d(path: str | Path, *, bn_eps: float) -> I3D:
    """I3D with the weights of `i3d_pretrained_400.pt`, whose content `find_i3d` has checked.

    The file has 287 tensors. The network has 344: PyTorch adds `num_batches_tracked` of each BatchNorm. Raises
    UserError if the tensors do not fit.
    """
    net = I3D(bn_eps=bn_eps)
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, UnpicklingError, TypeError, EOFError) as error:
        raise UserError(f"{path} does not hold the weights of this I3D: {error}") from error
    return net


def load_torchscript_i3d(path: str | Path, *, inside: bool) -> TorchScriptI3D:
    """I3D from `i3d_torchscript.pt`. The file contains code: load only a file that `find_i3d` has checked.

    Raises UserError if it cannot be read.
    """
    try:
        script = torch.jit.load(str(path), map_location="cpu")
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read as TorchScript: {error}") from error
    return TorchScriptI3D(script.eval(), inside=inside)


def seeded_i3d(seed: int = 0, *, bn_eps: float = 1e-3) -> I3D:
    """I3D with random weights of He initialisation (arXiv:1502.01852), for tests and timing.

    A distance over its features is not FVD.
    """
    generator = torch.Generator().manual_seed(seed)
    net = I3D(bn_eps=bn_eps)
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    return net


def _what_it_is(blob: str) -> str:
    """Predicate of an error sentence: which wrong file this is."""
    for start, name in LOOK_ALIKES.items():
        if blob.startswith(start):
            return (
                f"is {name}, an I3D that was initialised from ImageNet. FVD is defined by the I3D that was "
                "trained on Kinetics-400 from scratch; values of the two cannot be compared."
            )
    for other in KNOWN.values():
        if other.digest == f"git-blob:{blob}":
            return f"is {other.file}, which this preprocessing does not use."
    return f"is not a published I3D (git blob id {blob}). The download may be incomplete."
