"""Feature network of FVD (arXiv:1812.01717): 400 logits of the Kinetics I3D, with named preprocessing and weights.

The Fréchet distance over these features is in `arvid.metrics.frechet`. KVD uses the same features
(`arvid.metrics.kernel_distance`).
"""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.files import sha256_file
from arvid.metrics.frechet import FeatureNetwork
from arvid.metrics.i3d import (
    NUM_LOGITS,
    check_num_frames,
    find_i3d,
    load_i3d,
    load_torchscript_i3d,
    seeded_i3d,
)
from arvid.metrics.inference import in_chunks
from arvid.metrics.preprocessing import Preprocessing, get_preprocessing
from arvid.metrics.videos import check_videos


class I3DFeatures(FeatureNetwork):
    """uint8 video (B, T, H, W, 3), T >= 9 -> logits float32 (B, 400).

    Computed in full float32 (no TF32, no autocast) and a few clips at a time, so memory does not grow with the batch.

    Args:
        network: maps preprocessed clips to logits (B, 400).
        preprocessing: makes the network's input from clips.
        name: written into every record.
        sha256: hash of the weights file.
    """

    num_features = NUM_LOGITS

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        *,
        name: str,
        sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        self.name = name
        self.sha256 = sha256
        self.eval().requires_grad_(False)

    def forward(self, videos: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b d"]:
        """Raises UserError for fewer than 9 frames, ValueError for anything but uint8 video."""
        check_videos(videos)
        check_num_frames(videos.shape[1])
        device = next(self.network.parameters()).device
        return in_chunks(lambda clips: self.network(self.preprocessing(clips)), videos, device)


def fvd_features(preprocessing: str, *, weights: str | Path | None = None) -> I3DFeatures:
    """The feature network of a named preprocessing, with its published weights, on the CPU.

    Args:
        preprocessing: a key of `arvid.metrics.preprocessing.PREPROCESSINGS`.
        weights: path of the weights file. Default: the file in the weights folder.

    Raises UserError for an unknown name, and if the file is missing or is a different file.
    """
    variant = get_preprocessing(preprocessing)
    path = find_i3d(variant.weights, weights)
    network: nn.Module
    if variant.weights == "i3d-torchscript":
        network = load_torchscript_i3d(path, inside=variant.fit == "inside")
    else:
        network = load_i3d(path, bn_eps=variant.bn_eps)
    return I3DFeatures(
        network, variant, name=f"i3d-k400 ({variant.name})", sha256=sha256_file(path)
    )


def seeded_fvd_features(preprocessing: str, *, seed: int = 0) -> I3DFeatures:
    """The feature network with random weights, named `i3d-random-...`. For tests and timing: distances are not FVD.

    Raises UserError if the preprocessing is part of the weights file (`stylegan-v`).
    """
    variant = get_preprocessing(preprocessing)
    if variant.fit == "inside":
        raise UserError(
            f"Preprocessing {variant.name} happens in its weights file: it cannot have random weights."
        )
    network = seeded_i3d(seed, bn_eps=variant.bn_eps)
    return I3DFeatures(network, variant, name=f"i3d-random-{seed} ({variant.name})")
