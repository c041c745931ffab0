"""How each of diffusers' autoencoders is to be called: strides, frame counts, calls and the scale of its latents.

Read from diffusers 0.42.1, the classes and the pipelines that use them. Not here: AutoencoderKLAllegro, which encodes
only clips that its overlapping tiles of 24 x 320 x 320 cover; autoencoders of images that a pipeline packs further
(Flux 2) or that have a codebook (VQModel); those of sound.
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
"""What is subtracted from a latent: per channel, or one number. A class has at most one that is set."""
SCALE = ("scaling_factor",)
"""What it is then multiplied with."""
SPREAD = ("latents_std",)
"""And what it is divided by, per channel."""


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What one class does. Functions that take an autoencoder get latents and video as (B, C, T, H, W)."""

    statistics: tuple[str, ...]
    """Which of `SHIFT`, `SCALE` and `SPREAD` it keeps: in its configuration, or as buffers."""
    strides: Callable[[Any], Triple]
    """(frames, rows, columns) of pixels behind a latent position."""
    channels: str = "latent_channels"
    """What its configuration calls the latent's channels."""
    frame_by_frame: bool = False
    """Whether it is one for images, so that each frame is encoded alone."""
    exact_prefix: bool = True
    """Whether later frames leave the latents of earlier ones as they are. If not, its norms see several frames."""
    latent_step: int = 1
    """It decodes 1 + n·latent_step latent frames only."""
    one_by_one: bool = False
    """Whether it takes one clip at a time, for its own mask over frames does not fit more."""
    decode: Callable[[Any, Tensor], Tensor] | None = None
    """How a latent becomes a video where it takes more than `decode(latent)`."""


def _halvings(levels: str) -> Callable[[Any], Triple]:
    """Half the size after each level of the configuration but the last; time as the configuration says."""

    def strides(autoencoder: Any) -> Triple:
        config = autoencoder.config
        space = 2 ** (len(config[levels]) - 1)
        return config.get("temporal_compression_ratio", 1), space, space

    return strides


def _configured(frames: str, space: str) -> Callable[[Any], Triple]:
    """As the configuration says."""

    def strides(autoencoder: Any) -> Triple:
        config = autoencoder.config
        return config[frames], config[space], config[space]

    return strides


def _attributes(autoencoder: Any) -> Triple:
    """As the object says."""
    space = autoencoder.spatial_compression_ratio
    return autoencoder.temporal_compression_ratio, space, space


def _ltx(autoencoder: Any) -> Triple:
    """Patches, then halvings of rows and columns, of frames, or (conv, spatiotemporal) of all three.

    The object itself counts wrongly unless the configuration tells it.
    """
    config = autoencoder.config
    halvings = zip(config.downsample_type, config.spatio_temporal_scaling, strict=False)
    kinds = [kind for kind, halves in halvings if halves]
    frames = config.patch_size_t * 2 ** sum(kind != "spatial" for kind in kinds)
    space = config.patch_size * 2 ** sum(kind != "temporal" for kind in kinds)
    return frames, space, space


def _decode_with_time(autoencoder: Any, latent: Tensor) -> Tensor:
    """LTX: some of its decoders also denoise. They are given the time 0, the default of its pipeline.

    They may add noise of their own, which is drawn here from a fixed seed.
    """
    time = latent.new_zeros(len(latent)) if autoencoder.config.timestep_conditioning else None
    gpu = latent.device.index if latent.device.type == "cuda" else None
    with torch.random.fork_rng([] if gpu is None else [gpu]):
        noise = torch.default_generator if gpu is None else torch.cuda.default_generators[gpu]
        noise.manual_seed(0)
        video: Tensor = autoencoder.decode(latent, time, return_dict=False)[0]
    return video


def _decode_clip_of_images(autoencoder: Any, latent: Tensor) -> Tensor:
    """Stable Video Diffusion: latents of images, decoded together."""
    frames = rearrange(latent, "b c t h w -> (b t) c h w")
    video = autoencoder.decode(frames, num_frames=latent.shape[2], return_dict=False)[0]
    return rearrange(video, "(b t) c h w -> b c t h w", b=len(latent))


CONVENTIONS: dict[str, Convention] = {
    # images: Stable Diffusion 1 to 3, SDXL, Flux 1
    "AutoencoderKL": Convention(
        statistics=(*SCALE, *SHIFT, *SPREAD),
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
        statistics=(*SCALE, *SHIFT, *SPREAD),
        strides=_halvings("block_out_channels"),
        exact_prefix=False,
        latent_step=2,
    ),
    "AutoencoderKLCosmos": Convention(
        statistics=(*SCALE, "latents_mean", *SPREAD),
        strides=_configured("temporal_compression_ratio", "spatial_compression_ratio"),
    ),
    "AutoencoderKLHunyuanVideo": Convention(
        statistics=SCALE, strides=_attributes, exact_prefix=False
    ),
    "AutoencoderKLHunyuanVideo15": Convention(
        statistics=SCALE, strides=_attributes, one_by_one=True
    ),
    "AutoencoderKLLTXVideo": Convention(
        statistics=(*SCALE, "latents_mean", *SPREAD), strides=_ltx, decode=_decode_with_time
    ),
    "AutoencoderKLLTX2Video": Convention(
        statistics=(*SCALE, "latents_mean", *SPREAD), strides=_ltx, decode=_decode_with_time
    ),
    "AutoencoderKLMagvit": Convention(statistics=SCALE, strides=_attributes),  # EasyAnimate
    "AutoencoderKLMochi": Convention(
        statistics=(*SCALE, "latents_mean", *SPREAD), strides=_attributes
    ),
    "AutoencoderKLWan": Convention(
        statistics=("latents_mean", *SPREAD),
        strides=_configured("scale_factor_temporal", "scale_factor_spatial"),
        channels="z_dim",
    ),
}


def encode(autoencoder: Any, convention: Convention, video: Tensor) -> tuple[Tensor, Tensor | None]:
    """The latent's most likely value (B, C, t, h, w), unscaled, and its standard deviation if it has one."""
    if not convention.frame_by_frame:
        return _posterior(autoencoder, video)
    modes, spreads = zip(*(_posterior(autoencoder, x) for x in video.unbind(2)), strict=True)
    spread = None if spreads[0] is None else torch.stack(spreads, dim=2)
    return torch.stack(modes, dim=2), spread


def decode(autoencoder: Any, convention: Convention, latent: Tensor) -> Tensor:
    """The video (B, 3, T, H, W) behind an unscaled latent, not clamped."""
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
    """Shift and factor that make tokens of latents: (latent - shift) · factor.

    Cosmos has values of its own for each latent frame. Raises UserError for a clip that has more frames than those.
    """
    buffers = dict(
        autoencoder.named_buffers(recurse=False)
    )  # LTX keeps its statistics with the weights
    config: Any = autoencoder.config

    def read(names: tuple[str, ...], default: float) -> Tensor | float:
        kept = (buffers.get(n, config.get(n)) for n in names if n in convention.statistics)
        value = next((v for v in kept if v is not None), default)
        return value if isinstance(value, float | int) else _of_frames(value, like)

    return read(SHIFT, 0.0), read(SCALE, 1.0) / read(SPREAD, 1.0)


def _of_frames(value: Any, like: Tensor) -> Tensor:
    """Statistics of each channel, or of each channel and latent frame, to go with latents (B, t, h, w, C)."""
    values = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    frames = values.view(like.shape[-1], -1).T[:, None, None]  # (1 or n, 1, 1, C)
    if 1 < len(frames) < like.shape[1]:
        raise UserError(
            f"This tokenizer knows the scale of its first {len(frames)} latent frames only, and the clip has "
            f"{like.shape[1]}."
        )
    return frames[: like.shape[1]]


def _posterior(autoencoder: Any, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    encoded = autoencoder.encode(pixels, return_dict=False)[0]
    if isinstance(encoded, Tensor):
        return encoded, None
    return encoded.mode(), getattr(encoded, "std", None)  # some are distributions without a width
