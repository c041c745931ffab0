"""FVD's feature network (arXiv:1812.01717): 400 logits of the Kinetics I3D, preprocessing and weights by name.

The Fréchet distance over them is `arvid.metrics.frechet`; KVD, `arvid.metrics.kernel_distance`, takes the same ones.
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

    Computed in full float32 (neither TF32 nor autocast) and a few clips at a time, so that the memory taken does
    not grow with the batch.

    Args:
        network: from what `preprocessing` makes of the clips to logits (B, 400).
        preprocessing: how clips become its input.
        name: written beside every number.
        sha256: hash of the file its weights came from.
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
        preprocessing: a name of `arvid.metrics.preprocessing.PREPROCESSINGS`.
        weights: the file that it wants, if it lies elsewhere than in the folder of weights.

    Raises UserError for an unknown name, and if the file is missing or is another one.
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
    """The same with random weights, whose name says so: for tests and timing, its distances are no FVD.

    Raises UserError for a preprocessing that is part of a file of weights (`stylegan-v`).
    """
    variant = get_preprocessing(preprocessing)
    if variant.fit == "inside":
        raise UserError(f"Preprocessing {variant.name} happens in its file of weights.")
    network = seeded_i3d(seed, bn_eps=variant.bn_eps)
    return I3DFeatures(network, variant, name=f"i3d-random-{seed} ({variant.name})")
