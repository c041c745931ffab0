"""pretrained: published autoencoders of the diffusers library, frozen.

Tokens are latents in the scale of the autoencoder's own pipeline, (z - shift) · factor, with about unit variance. The
latent is the posterior's mode, so tokens are a function of the video. `arvid.tokenizers.pretrained.conventions` has the
table of supported classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from arvid import hub
from arvid.contracts import TokenGrid, TokenSpec, UserError, VideoTokenizer
from arvid.importing import match
from arvid.nn.hyperparameters import plain
from arvid.tokenizers.pretrained.conventions import (
    CONVENTIONS,
    Convention,
    affine,
    decode,
    encode,
)

__all__ = ["Pretrained"]

STABLE_DIFFUSION: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
"""Configuration of the autoencoders of Stable Diffusion 1 and XL, which have the same network."""


class Pretrained(VideoTokenizer):
    """An autoencoder of diffusers, untrained; `from_published` reads the weights.

    Args:
        class_name: name of the class in diffusers, one of `CONVENTIONS`.
        config: arguments of its constructor, as in its `config.json`.
    """

    def __init__(self, class_name: str, config: dict[str, Any]) -> None:
        super().__init__()
        self.convention = _convention(class_name)
        cls = getattr(diffusers, class_name)
        try:
            self.autoencoder = cls.from_config(config)
        except Exception as error:  # diffusers hardly checks configurations: any error may come
            raise UserError(f"{class_name} cannot be built from {config}: {error}") from error
        if self.convention.one_by_one:
            self.autoencoder.enable_slicing()
        built = self.autoencoder.config
        self.hyperparameters = plain(
            class_name=class_name,
            config={name: built[name] for name in inspect.signature(cls).parameters},
        )
        self._spec = TokenSpec(
            "continuous",
            built[self.convention.channels],
            self.convention.strides(self.autoencoder),
            causal=True,
            exact_prefix=self.convention.exact_prefix,
        )

    @classmethod
    def from_published(cls, source: str) -> Pretrained:
        """The autoencoder in a local folder or on the Hugging Face hub (see `arvid.hub`), in float32.

        Raises UserError if it cannot be read, if its class is not supported, or if its tensors do not fit the class
        (with a list of them).
        """
        config = hub.read_config(source)
        try:
            tokenizer = cls(config["_class_name"], config)
            autoencoder = tokenizer.autoencoder
            own = autoencoder.state_dict()
            state, _ = match(hub.read_tensors(source), own, {name: name for name in own})
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
        autoencoder.load_state_dict(state)
        return tokenizer

    @classmethod
    def untrained(cls, source: str) -> Pretrained:
        """Without a local folder: the image autoencoder of Stable Diffusion, which NOVA's image models use."""
        if Path(source).is_dir():
            config = hub.read_config(source)
            return cls(config["_class_name"], config)
        return cls("AutoencoderKL", STABLE_DIFFUSION)

    def to_published(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Configuration and weights in the format of `from_published`."""
        options = self.hyperparameters
        config = {"_class_name": options["class_name"], **options["config"]}
        return config, self.autoencoder.state_dict()

    @property
    def spec(self) -> TokenSpec:
        return self._spec

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b t h w c"]:
        """Raises UserError for a size or a number of frames that the autoencoder does not support."""
        return self._encode(video)[0]

    def encode_posterior(
        self, video: Float[Tensor, "b 3 T H W"]
    ) -> tuple[Float[Tensor, "b t h w c"], Float[Tensor, "b t h w c"]]:
        """Raises UserError as `encode` does, and if the autoencoder is deterministic."""
        tokens, std = self._encode(video)
        return (tokens, std) if std is not None else super().encode_posterior(video)

    def _encode(self, video: Tensor) -> tuple[Tensor, Tensor | None]:
        self._check_frames(self.spec.grid(*video.shape[2:]).t)
        mode, std = encode(self.autoencoder, self.convention, video)
        latent = rearrange(mode, "b c t h w -> b t h w c")
        shift, factor = affine(self.autoencoder, self.convention, latent)
        if std is not None:
            std = rearrange(std, "b c t h w -> b t h w c") * factor
        return (latent - shift) * factor, std

    def check_grid(self, grid: TokenGrid) -> None:
        """Raises UserError for numbers of latent frames that the autoencoder does not support."""
        self._check_frames(grid.t)

    def decode(self, tokens: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b 3 T H W"]:
        self._check_frames(tokens.shape[1])
        shift, factor = affine(self.autoencoder, self.convention, tokens)
        latent = rearrange(tokens / factor + shift, "b t h w c -> b c t h w").contiguous()
        return decode(self.autoencoder, self.convention, latent).clamp(-1, 1)

    @torch.no_grad()
    def encode_stream(
        self, chunks: Iterable[Float[Tensor, "b 3 _ H W"]]
    ) -> Iterator[Float[Tensor, "b _ h w c"]]:
        """Image autoencoders encode chunk by chunk, in constant memory; others encode the whole clip at once."""
        if self.convention.frame_by_frame:
            for video in chunks:
                yield self.encode(video)
        else:
            yield from super().encode_stream(chunks)

    @torch.no_grad()
    def decode_stream(
        self, chunks: Iterable[Float[Tensor, "b _ h w c"]]
    ) -> Iterator[Float[Tensor, "b 3 _ H W"]]:
        """Image autoencoders decode chunk by chunk, in constant memory; others decode the whole clip at once."""
        if self.convention.frame_by_frame and self.convention.decode is None:
            for tokens in chunks:
                yield self.decode(tokens)
        else:
            yield from super().decode_stream(chunks)

    def _check_frames(self, t: int) -> None:
        step, stride = self.convention.latent_step, self.spec.strides[0]
        if (t - 1) % step:
            raise UserError(
                f"{1 + (t - 1) * stride} frames do not fit this tokenizer: "
                f"it takes 1 + {step * stride}·n frames."
            )


def _convention(class_name: str) -> Convention:
    if class_name not in CONVENTIONS:
        raise UserError(
            f"{class_name!r} is not a supported autoencoder of diffusers. "
            f"Supported: {', '.join(sorted(CONVENTIONS))}."
        )
    if not hasattr(diffusers, class_name):
        raise UserError(f"diffusers {diffusers.__version__} has no {class_name} yet: update it.")
    return CONVENTIONS[class_name]
