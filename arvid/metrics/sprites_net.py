"""SpritesNet: a small video classifier for the Sprites dataset, and the feature network of `fd-sprites`.

Five 3-D convolutions, pooling to a coarse grid of time and place, and 64 features. One linear head each predicts shape,
colour and motion. The features have about unit variance on unseen sprites, so `fd-sprites` has the same scale for every
version of the network. They do not describe natural video: the distance over them is not FVD.

benchmarks/demo/train_sprites_net.py trains it and writes assets/sprites-net.safetensors.
"""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.contracts import UserError
from arvid.data.sprites import COLOURS, MOTIONS, SHAPES
from arvid.files import atomic_write, sha256_file
from arvid.metrics.frechet import FeatureNetwork
from arvid.metrics.videos import check_videos, unit_frames

ATTRIBUTES = {"shape": SHAPES, "colour": tuple(COLOURS), "motion": MOTIONS}
"""Attributes that the network predicts: name -> values, in the order of the logits."""

ASSET = Path(__file__).parents[1] / "assets" / "sprites-net.safetensors"
FRAME_SIZE = 32
MIN_FRAMES = 5
_WIDTHS = (16, 32, 48, 80, 80)
_STRIDES = ((1, 2, 2), (2, 2, 2), (1, 1, 1), (2, 2, 2), (1, 1, 1))
_CELLS = (3, 2, 2)  # frames, rows, columns after pooling


class SpritesNet(FeatureNetwork):
    """uint8 video (B, T, H, W, 3) -> features (B, 64). T >= 5; frames are resized to 32x32."""

    name = "sprites-net"
    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *_WIDTHS[:-1])
        blocks = zip(inputs, _WIDTHS, _STRIDES, strict=True)
        self.body = nn.Sequential(*(_block(*block) for block in blocks))
        cells = _CELLS[0] * _CELLS[1] * _CELLS[2]
        self.project = nn.Linear(_WIDTHS[-1] * cells, self.num_features, bias=False)
        self.standardise = nn.BatchNorm1d(self.num_features, affine=False)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(self.num_features, len(values)) for name, values in ATTRIBUTES.items()}
        )

    def forward(self, videos: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b d"]:
        return self.features(_preprocess(videos))

    def features(self, video: Float[Tensor, "b 3 t 32 32"]) -> Float[Tensor, "b d"]:
        """Features of video in [-1, 1]."""
        hidden = F.adaptive_avg_pool3d(self.body(video), _CELLS)  # (B, C, 3, 2, 2)
        features: Tensor = self.standardise(self.project(hidden.flatten(1)))
        return features

    def logits(self, features: Float[Tensor, "b d"]) -> dict[str, Float[Tensor, "b k"]]:
        """Logits of the values, by attribute."""
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def classify(self, videos: UInt8[Tensor, "b t h w 3"]) -> list[dict[str, str]]:
        """Most likely shape, colour and motion of each clip (of the front sprite if it shows two)."""
        best = {name: x.argmax(1).tolist() for name, x in self.logits(self(videos)).items()}
        return [
            {name: ATTRIBUTES[name][indices[i]] for name, indices in best.items()}
            for i in range(len(videos))
        ]


def load_sprites_net(path: str | Path | None = None) -> SpritesNet:
    """The trained network, frozen and in evaluation mode, on the CPU.

    Raises UserError if the file is missing or is a different file.
    """
    path = Path(path or ASSET)
    if not path.is_file():
        raise UserError(
            f"The weights of SpritesNet are not at {path}. They are part of arvid: reinstall it, "
            "or train them with `python benchmarks/demo/train_sprites_net.py`."
        )
    net = SpritesNet()
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        net.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not hold the weights of SpritesNet: {error}") from error
    net.sha256 = sha256_file(path)
    return net.eval().requires_grad_(False)


def save_sprites_net(net: SpritesNet, path: str | Path, metadata: dict[str, str]) -> None:
    """Write the weights in half precision, with `metadata` in the file's header."""
    # integer buffers (num_batches_tracked) are not needed for inference
    state = {k: v.half().contiguous() for k, v in net.state_dict().items() if v.is_floating_point()}
    with atomic_write(path) as temporary:
        save_file(state, temporary, metadata={"network": net.name, **metadata})


def _block(inputs: int, outputs: int, stride: tuple[int, int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm3d(outputs),
        nn.ReLU(inplace=True),
    )


def _preprocess(videos: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b 3 t 32 32"]:
    """Video in [-1, 1] at 32x32: area resize if neither side grows, else bilinear."""
    check_videos(videos)
    if videos.shape[1] < MIN_FRAMES:
        raise UserError(f"SpritesNet needs at least {MIN_FRAMES} frames, got {videos.shape[1]}.")
    frames = unit_frames(videos) * 2 - 1
    if frames.shape[-2:] != (FRAME_SIZE, FRAME_SIZE):
        shrinks = min(frames.shape[-2:]) >= FRAME_SIZE
        mode = "area" if shrinks else "bilinear"
        frames = F.interpolate(frames, size=(FRAME_SIZE, FRAME_SIZE), mode=mode)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(videos))
