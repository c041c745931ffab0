"""VideoMAE v2 features (ViT-g/14, fine-tuned on Something-Something v2) for FVD as in cd-fvd.

arXiv:2404.12391: I3D's training classes can be recognised from a single frame, so its features hardly depend on motion.
VideoMAE's do. The network comes from the package `cd-fvd`, whose Fréchet distance uses ddof 0.
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
from arvid.weights import locate

NUM_FRAMES = 16


class VideoMAEFeatures(FeatureNetwork):
    """uint8 video (B, 16, H, W, 3) -> float32 (B, 1408): the mean of all tokens after the last LayerNorm.

    As in cd-fvd, frames are resized to 224x224 without keeping the aspect ratio (bilinear, half-pixel). They stay in
    [0, 1], without ImageNet's normalisation.

    Args:
        network: cd-fvd's VisionTransformer; `forward_features` is called.
        num_features: token width.
        sha256: hash of the weights file.
    """

    name = "videomae-v2-g (cd-fvd)"

    network: Any
    """Typed as Any because the package has no type hints."""

    def __init__(
        self, network: nn.Module, *, num_features: int = 1408, sha256: str | None = None
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.num_features = num_features
        self.sha256 = sha256

    def forward(self, videos: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b d"]:
        """Raises UserError unless clips have 16 frames."""
        check_videos(videos)
        if videos.shape[1] != NUM_FRAMES:
            raise UserError(
                f"VideoMAE features take clips of {NUM_FRAMES} frames, got {videos.shape[1]}."
            )
        device = next(self.network.parameters()).device
        return in_chunks(self._features, videos, device)

    def _features(self, videos: Tensor) -> Tensor:
        frames = videos.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
        resized = resize_half_pixel(frames).unflatten(0, (-1, NUM_FRAMES))  # (B, T, 3, 224, 224)
        return self.network.forward_features(resized.transpose(1, 2))


def videomae_features() -> VideoMAEFeatures:
    """The feature network with its published weights, on the CPU (one billion parameters).

    Raises UserError if the package `cd-fvd` is not installed, or the weights are missing or do not fit.
    """
    try:
        from cdfvd.third_party.VideoMAEv2.videomaev2_finetune import vit_giant_patch14_224
    except ImportError as error:
        raise UserError(
            f"VideoMAE features need the package cd-fvd ({error}): pip install 'arvid[cd-fvd]'"
        ) from error
    path = locate("videomae-v2-g")
    network = vit_giant_patch14_224(
        img_size=SIZE, num_classes=174, all_frames=NUM_FRAMES, tubelet_size=2, use_mean_pooling=True
    )
    load_videomae(network, path)
    return VideoMAEFeatures(network, sha256=sha256_file(path))


def load_videomae(network: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into the network. Its tensors lie at the top level or under `model` or `module`.

    Raises UserError if they do not fit.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state.get("model") or state.get("module") or state)
    except (RuntimeError, UnpicklingError, TypeError, AttributeError, EOFError) as error:
        raise UserError(f"{path} does not hold the weights of VideoMAE v2: {error}") from error
