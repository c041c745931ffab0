"""The conventions of diffusers' autoencoders: strides, numbers of frames, calls, and the scale of latents.

Taken from the classes and pipelines of diffusers 0.42.1. Not supported: AutoencoderKLAllegro, which encodes only clips
that its overlapping tiles of 24 x 320 x 320 cover; image autoencoders whose latents the pipeline packs further (Flux 2)
or that have a codebook (VQModel); audio autoencoders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from arvid.contracts import UserError

Triple = tuple[int, int, int]
SHIFT = ("latents_mean", "shift_factor")
"""Names of the shift, which is subtracted from a latent: per channel, or one number. At most one is set in a class."""
SCALE = ("scaling_factor",)
"""Name of the scale, by which the shifted latent is multiplied."""
STD = ("latents_std",)
"""Name of the standard deviation per channel, by which it is divided."""


@dataclass(frozen=True, kw_only=True)
class Convention:
    """Properties of one class. Latents and videos in calls have shape (B, C, T, H, W)."""

    statistics: tuple[str, ...]
    """The names of `SHIFT`, `SCALE` and `STD` that the class has, in its configuration or as buffers."""
    strides: Callable[[Any], Triple]
    """(frames, rows, columns) of pixels per latent position."""
    channels: str = "latent_channels"
    """Key of the number of latent channels in its configuration."""
    frame_by_frame: bool = False
    """Whether it is an image autoencoder, which encodes frames separately."""
    exact_prefix: bool = True
    """Whether latents do not depend on later frames. False if its norms see several frames."""
    latent_step: int = 1
    """It decodes only 1 + n·latent_step latent frames."""
    one_by_one: bool = False
    """Whether it takes one clip at a time, because its mask over frames does not fit a larger batch."""
    decode: Callable[[Any, Tensor], Tensor] | None = None
    """Decoding function, if a plain `decode(latent)` is not enough."""


def _halvings(levels: str) -> Callable[[Any], Triple]:
    """Spatial stride 2 for each level of the configuration except the last; temporal stride from the configuration."""

    def strides(autoencoder: Any) -> Triple:
        config = autoencoder.config
        space = 2 ** (len(config[levels]) - 1)
        return config.get("temporal_compression_ratio", 1), space, space

    return strides


def _configured(frames: str, space: str) -> Callable[[Any], Triple]:
    """Strides from the configuration."""

    def strides(autoencoder: Any) -> Triple:
        config = autoencoder.config
        return config[frames], config[space], config[space]

    return strides


def _attributes(autoencoder: Any) -> Triple:
    """Strides from the object's attributes."""
    space = autoencoder.spatial_compression_ratio
    return autoencoder.temporal_compression_ratio, space, space


def _ltx(autoencoder: Any) -> Triple:
    """Strides of LTX: the patch size, times 2 for each level that halves frames, rows and columns, or all three.

    (Level kinds are "spatial", "temporal", and "conv" or "spatiotemporal" for both.) The object's own attributes are
    wrong if the configuration does not set them.
    """
    config = autoencoder.config
    halvings = zip(config.downsample_type, config.spatio_temporal_scaling, strict=False)
    kinds = [kind for kind, halves in halvings if halves]
    frames = config.patch_size_t * 2 ** sum(kind != "spatial" for kind in kinds)
    space = config.patch_size * 2 ** sum(kind != "temporal" for kind in kinds)
    return frames, space, space


def _decode_with_time(autoencoder: Any, latent: Tensor) -> Tensor:
    """LTX: some decoders also denoise. They get the time 0, the default of the pipeline.

    They may add noise of their own. Here it comes from a fixed seed, and the global generator is restored.
    """
    time = latent.new_zeros(len(latent)) if autoencoder.config.timestep_conditioning else None
    gpu = latent.device.index if latent.device.type == "cuda" else None
    with torch.random.fork_rng([] if gpu is None else [gpu]):
        noise = torch.default_generator if gpu is None else torch.cuda.default_generators[gpu]
        noise.manual_seed(0)
        video: Tensor = autoencoder.decode(latent, time, return_dict=False)[0]
    return video


def _decode_clip_of_images(autoencoder: Any, latent: Tensor) -> Tensor:
    """Stable Video Diffusion: the decoder takes all image latents of a clip together."""
    frames = rearrange(latent, "b c t h w -> (b t) c h w")
    video = autoencoder.decode(frames, num_frames=latent.shape[2], return_dict=False)[0]
    return rearrange(video, "(b t) c h w -> b c t h w", b=len(latent))


CONVENTIONS: dict[str, Convention] = {
    # images: Stable Diffusion 1 to 3, SDXL, Flux 1
    "AutoencoderKL": Convention(
        statistics=(*SCALE, *SHIFT, *STD),
        strides=_halvings("block_out_channels"),
        frame_by_frame=True,
    ),
    "AsymmetricAutoencoderKL": Convention(
        statistics=SCALE, strides=_halvings("down_block_out_channels"), frame_by_frame=True
    ),
    "AutoencoderTiny": Convention(
        statistics=(*SCALE, "shift_factor"),
        strides=_halvings("encoder_block_out_channels"),
        frame_by_frame=True,
    ),
    "AutoencoderDC": Convention(statistics=SCALE, strides=_attributes, frame_by_frame=True),
    "AutoencoderKLTemporalDecoder": Convention(
        statistics=SCALE,
        strides=_halvings("block_out_channels"),
        frame_by_frame=True,
        decode=_decode_clip_of_images,
    ),
    # video
    "AutoencoderKLCogVideoX": Convention(
        statistics=(*SCALE, *SHIFT, *STD),
        strides=_halvings("block_out_channels"),
        exact_prefix=False,
        latent_step=2,
    ),
    "AutoencoderKLCosmos": Convention(
        statistics=(*SCALE, "latents_mean", *STD),
        strides=_configured("temporal_compression_ratio", "spatial_compression_ratio"),
    ),
    "AutoencoderKLHunyuanVideo": Convention(
        statistics=SCALE, strides=_attributes, exact_prefix=False
    ),
    "AutoencoderKLHunyuanVideo15": Convention(
        statistics=SCALE, strides=_attributes, one_by_one=True
    ),
    "AutoencoderKLLTXVideo": Convention(
        statistics=(*SCALE, "latents_mean", *STD), strides=_ltx, decode=_decode_with_time
    ),
    "AutoencoderKLLTX2Video": Convention(
        statistics=(*SCALE, "latents_mean", *STD), strides=_ltx, decode=_decode_with_time
    ),
    "AutoencoderKLMagvit": Convention(statistics=SCALE, strides=_attributes),  # EasyAnimate
    "AutoencoderKLMochi": Convention(
        statistics=(*SCALE, "latents_mean", *STD), strides=_attributes
    ),
    "AutoencoderKLWan": Convention(
        statistics=("latents_mean", *STD),
        strides=_configured("scale_factor_temporal", "scale_factor_spatial"),
        channels="z_dim",
    ),
}


def encode(autoencoder: Any, convention: Convention, video: Tensor) -> tuple[Tensor, Tensor | None]:
    """The posterior's mode (B, C, t, h, w), unscaled, and its standard deviation if there is one."""
    if not convention.frame_by_frame:
        return _posterior(autoencoder, video)
    modes, stds = zip(*(_posterior(autoencoder, x) for x in video.unbind(2)), strict=True)
    std = None if stds[0] is None else torch.stack(stds, dim=2)
    return torch.stack(modes, dim=2), std


def decode(autoencoder: Any, convention: Convention, latent: Tensor) -> Tensor:
    """Decode an unscaled latent to a video (B, 3, T, H, W), not clamped."""
    if convention.decode is not None:
        return convention.decode(autoencoder, latent)
    if convention.frame_by_frame:
        frames = [autoencoder.decode(x, return_dict=False)[0] for x in latent.unbind(2)]
        return torch.stack(frames, dim=2)
    video: Tensor = autoencoder.decode(latent, return_dict=False)[0]
    return video


def affine(
    autoencoder: nn.Module, convention: Convention, like: Float[Tensor, "b t h w c"]
) -> tuple[Tensor | float, Tensor | float]:
    """Shift and factor that turn latents into tokens: (latent - shift) · factor.

    Cosmos has separate values for each latent frame. Raises UserError for a clip with more latent frames than these.
    """
    buffers = dict(autoencoder.named_buffers(recurse=False))  # LTX: statistics are buffers
    config: Any = autoencoder.config

    def read(names: tuple[str, ...], default: float) -> Tensor | float:
        kept = (buffers.get(n, config.get(n)) for n in names if n in convention.statistics)
        value = next((v for v in kept if v is not None), default)
        return value if isinstance(value, float | int) else _of_frames(value, like)

    return read(SHIFT, 0.0), read(SCALE, 1.0) / read(STD, 1.0)


def _of_frames(value: Any, like: Tensor) -> Tensor:
    """Statistics per channel, or per channel and latent frame, in a shape that broadcasts to (B, t, h, w, C)."""
    values = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    frames = values.view(like.shape[-1], -1).T[:, None, None]  # (1 or n, 1, 1, C)
    if 1 < len(frames) < like.shape[1]:
        raise UserError(
            f"This tokenizer has a scale for only {len(frames)} latent frames, but the clip has {like.shape[1]}."
        )
    return frames[: like.shape[1]]


def _posterior(autoencoder: Any, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    encoded = autoencoder.encode(pixels, return_dict=False)[0]
    if isinstance(encoded, Tensor):
        return encoded, None
    return encoded.mode(), getattr(encoded, "std", None)  # some distributions have no std
