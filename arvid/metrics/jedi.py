"""V-JEPA features for JEDi (arXiv:2410.05203): ViT-H/16 and the attentive pooler of its SSv2 probe.

The modules come from the package `vjepa`, which `videojedi` also uses. `videojedi` itself is not imported: it downloads
weights without asking, starts its own process group, and requires versions of torch and PyAV that conflict with
arvid's. For the same reason neither package is an extra of arvid. The distance is
`arvid.metrics.kernel_distance.jedi_distance`.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.files import sha256_file
from arvid.metrics.frechet import FeatureNetwork
from arvid.metrics.inference import in_chunks
from arvid.metrics.preprocessing import SIZE, resize_half_pixel
from arvid.metrics.videos import check_videos
from arvid.weights import weights_dir

NUM_FRAMES = 16
FILES = ("vith16.pth.tar", "ssv2-probe.pth.tar")
SOURCE = "https://dl.fbaipublicfiles.com/jepa/vith16"
INSTALL = "pip install --no-deps vjepa==0.1.2"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class JediFeatures(FeatureNetwork):
    """uint8 video (B, 16, H, W, 3) -> float32 (B, 1280).

    Frames are resized to 224x224 without keeping the aspect ratio (bilinear, half-pixel; the package leaves the resize
    to its caller). Then they are normalised with ImageNet's mean and standard deviation.

    Args:
        encoder: vjepa's vision transformer, (B, 3, T, 224, 224) -> tokens (B, N, D).
        pooler: vjepa's attentive pooler, tokens -> (B, 1, D).
        num_features: token width D.
        sha256: hash of the encoder's weights file.
    """

    name = "v-jepa-h16-ssv2 (jedi)"
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        pooler: nn.Module,
        *,
        num_features: int = 1280,
        sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooler = pooler
        self.num_features = num_features
        self.sha256 = sha256
        for name, values in zip(("mean", "deviation"), _IMAGENET, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, videos: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b d"]:
        """Raises UserError unless clips have 16 frames."""
        check_videos(videos)
        if videos.shape[1] != NUM_FRAMES:
            raise UserError(
                f"JEDi takes clips of {NUM_FRAMES} frames, got {videos.shape[1]} frames."
            )
        return in_chunks(self._features, videos, self.mean.device)

    def _features(self, videos: Tensor) -> Tensor:
        frames = videos.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        frames = (resize_half_pixel(frames) - self.mean) / self.deviation
        video = frames.unflatten(0, (-1, NUM_FRAMES)).transpose(1, 2)  # (B, 3, T, 224, 224)
        return self.pooler(self.encoder(video)).squeeze(1)


def jedi_features() -> JediFeatures:
    """The feature network with its published weights, on the CPU (630 million parameters).

    No checksum is published, so the record holds the hash of the encoder file in use. Raises UserError if the package
    `vjepa` is not installed, or if weights are missing or do not fit.
    """
    try:
        from vjepa.models import vit_huge
        from vjepa.models.attentive_pooler import AttentiveClassifier
    except ImportError as error:
        raise UserError(f"JEDi needs the package vjepa ({error}): {INSTALL}") from error
    encoder_path, probe_path = (_find(file) for file in FILES)
    encoder = vit_huge(
        img_size=SIZE,
        patch_size=16,
        num_frames=16,
        tubelet_size=2,
        uniform_power=True,
        use_sdpa=True,
    )
    probe = AttentiveClassifier(
        embed_dim=encoder.embed_dim, num_heads=encoder.num_heads, depth=1, num_classes=174
    )
    load_vjepa(encoder, encoder_path, "target_encoder")
    load_vjepa(probe, probe_path, "classifier")
    return JediFeatures(encoder, probe.pooler, sha256=sha256_file(encoder_path))


def load_vjepa(module: nn.Module, path: str | Path, key: str) -> None:
    """Fill a module from one entry of a V-JEPA checkpoint. Raises UserError if it does not fit."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)[key]
        names = {name: _plain(name) for name in state}
        module.load_state_dict({names[name]: tensor for name, tensor in state.items()})
    except (RuntimeError, UnpicklingError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{path} does not hold the V-JEPA weights {key!r}: {error}") from error


def _plain(name: str) -> str:
    """Tensor name without the prefixes of training wrappers."""
    return name.replace("module.", "").replace("backbone.", "")


def _find(file: str) -> Path:
    path = weights_dir() / file
    if not path.is_file():
        raise UserError(
            f"JEDi needs {file}, which is missing. Get it from {SOURCE}/{file} and put it at {path} "
            "(its publisher states no checksum)."
        )
    return path
