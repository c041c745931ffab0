"""LPIPS 0.1 (arXiv:1801.03924) as the lpips package computes it, over weights that are already on the machine.

The package holds the linear heads; the ImageNet backbone is a file of torchvision's. The package would download
it, or take a random one, without a word: here a missing file is an error that says where it comes from.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from pickle import UnpicklingError

import lpips
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.files import sha256_file
from arvid.metrics.paired import PairedMetric
from arvid.weights import KNOWN, locate

BACKBONES = {"alex": "alexnet", "vgg": "vgg", "squeeze": "squeeze"}
"""Each network's ImageNet weights, by their name in `arvid.weights.KNOWN`."""

MIN_SIZE = 32
_UNREADABLE = (
    KeyError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
    SafetensorError,
    UnpicklingError,
)
_FRAMES_AT_ONCE = 64  # keeps the activations of long clips within memory


class Lpips(PairedMetric):
    """Learned perceptual distance, 0 for equal frames. Values of different networks are not comparable.

    Args:
        net: `alex` (what papers report), `vgg` or `squeeze`.
        backbone: file with the network's ImageNet weights (safetensors or .pth, named `features.N.*`). Without
            it torchvision's file is looked for in the cache of torch hub. Nothing is ever downloaded.

    Raises UserError where weights are missing or do not fit, and for frames below 32x32 pixels.
    """

    higher_is_better = False

    def __init__(self, net: str = "alex", *, backbone: str | Path | None = None) -> None:
        super().__init__()
        if net not in BACKBONES:
            raise UserError(f"LPIPS has the networks {', '.join(BACKBONES)}, not {net!r}.")
        path = _find(net, backbone)
        self.name = f"lpips-{net}"
        self.network = _build(net, path)
        self.sha256 = sha256_file(path)

    def score_frames(self, generated: Tensor, reference: Tensor) -> Tensor:
        if min(generated.shape[-2:]) < MIN_SIZE:
            raise UserError(
                f"LPIPS needs frames of at least {MIN_SIZE}x{MIN_SIZE} pixels, "
                f"got {generated.shape[-2]}x{generated.shape[-1]}."
            )
        pairs = zip(generated.split(_FRAMES_AT_ONCE), reference.split(_FRAMES_AT_ONCE), strict=True)
        return torch.cat([self.network(a, b, normalize=True).flatten() for a, b in pairs])


def _find(net: str, backbone: str | Path | None) -> Path:
    if backbone is None:
        return locate(BACKBONES[net])
    if not Path(backbone).is_file():
        advice = KNOWN[BACKBONES[net]].advice
        raise UserError(f"The LPIPS backbone {backbone} is not there. {advice}")
    return Path(backbone)


def _build(net: str, path: Path) -> nn.Module:
    with warnings.catch_warnings():
        # The package calls torchvision in a way that is out of date there.
        warnings.filterwarnings("ignore", message=".*(pretrained|weight enum).*")
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    _load_backbone(network.net, path)
    frozen: nn.Module = network.eval().requires_grad_(False)
    return frozen


def _load_backbone(backbone: nn.Module, path: Path) -> None:
    """Fill every weight of the package's backbone, whose `sliceK.N.*` are torchvision's `features.N.*`."""
    try:
        found = _read(path)
        names = {name: f"features.{name.split('.', 1)[1]}" for name in backbone.state_dict()}
        backbone.load_state_dict({name: found[source] for name, source in names.items()})
    except _UNREADABLE as error:
        raise UserError(
            f"{path} does not hold the weights of this LPIPS backbone: {error}"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state
