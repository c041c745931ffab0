"""LPIPS 0.1 (arXiv:1801.03924) as the lpips package computes it, with weights that are already on the machine.

`Lpips` is the standard metric. `NbpPerceptual` is what the NBP code reports as LPIPS. The two cannot be compared.

The package includes the linear heads; the ImageNet backbone is a torchvision file. The package would silently download
the backbone or use random weights. Here a missing file is an error that says where to get it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.files import sha256_file
from arvid.metrics.paired import PairedMetric, require_size
from arvid.metrics.videos import check_pairs
from arvid.weights import KNOWN, locate

BACKBONES = {"alex": "alexnet", "vgg": "vgg", "squeeze": "squeeze"}
"""Network -> name of its ImageNet weights in `arvid.weights.KNOWN`."""

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
NBP_FRAME = 5
"""Index of the single frame that the NBP code scores, counted over the whole clip, given frames included."""


class Lpips(PairedMetric):
    """Learned perceptual distance, 0 for equal frames. Values of different networks are not comparable.

    Args:
        net: `alex` (usual in papers), `vgg` or `squeeze`.
        backbone: file with the network's ImageNet weights (safetensors or .pth, tensors named `features.N.*`).
            Default: torchvision's file in the cache of torch hub.

    Raises UserError if weights are missing or do not fit, and for frames below 32x32 pixels.
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
        require_size("LPIPS", generated, MIN_SIZE)
        return self.network(generated, reference, normalize=True).flatten()


class NbpPerceptual(Lpips):
    """The "LPIPS" of the NBP code: VGG distance of frame 5 only, with inputs in [0, 1] that are not normalised.

    The NBP code applies the inverse of ImageNet's normalisation, which cancels the normalisation in LPIPS's first
    layer. The input is whole clips, given frames included: with five given frames, frame 5 is the first predicted one.
    `per_frame` has only this frame.

    Args:
        backbone: as for `Lpips`, of VGG-16.

    Raises UserError as `Lpips` does, and for clips of fewer than six frames.
    """

    def __init__(self, *, backbone: str | Path | None = None) -> None:
        super().__init__("vgg", backbone=backbone)
        self.name = "nbp-perceptual"
        self.network.scaling_layer = nn.Identity()

    def update(self, generated: Tensor, reference: Tensor) -> None:
        check_pairs(generated, reference)
        if generated.shape[1] <= NBP_FRAME:
            raise UserError(
                f"The NBP code compares frame {NBP_FRAME} (counted from 0): "
                f"clips of {generated.shape[1]} frames have none."
            )
        super().update(generated[:, [NBP_FRAME]], reference[:, [NBP_FRAME]])

    def score_frames(self, generated: Tensor, reference: Tensor) -> Tensor:
        require_size("The NBP code's distance", generated, MIN_SIZE)
        return self.network(generated, reference).flatten()


def _find(net: str, backbone: str | Path | None) -> Path:
    if backbone is None:
        return locate(BACKBONES[net])
    if not Path(backbone).is_file():
        advice = KNOWN[BACKBONES[net]].advice
        raise UserError(f"The LPIPS backbone {backbone} does not exist. {advice}")
    return Path(backbone)


def untrained(net: str) -> nn.Module:
    """The network of LPIPS with random weights."""
    from lpips import LPIPS  # slow to import, with scipy and torchvision

    with warnings.catch_warnings():
        # The package uses a deprecated argument of torchvision.
        warnings.filterwarnings("ignore", message=".*(pretrained|weight enum).*")
        network = LPIPS(net=net, pnet_rand=True, verbose=False)
    frozen: nn.Module = network.eval().requires_grad_(False)
    return frozen


def _build(net: str, path: Path) -> nn.Module:
    network = untrained(net)
    _load_backbone(network.get_submodule("net"), path)
    return network


def _load_backbone(backbone: nn.Module, path: Path) -> None:
    """Load torchvision's weights into the package's backbone: `sliceK.N.*` is torchvision's `features.N.*`."""
    try:
        found = _read(path)
        # slice1.0.weight -> features.0.weight: layer numbers continue through the slices
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
