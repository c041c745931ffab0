"""open_sora_plan: the Open-Sora-Plan autoencoder as NOVA's video model uses it (arXiv 2412.14169).

Continuous tokens of 4 channels for 4 frames x 8 x 8 pixels. Network, tensor names and tiling are those of
`AutoencoderKLOpenSora` in baaivision/NOVA (commit 2cd254a); the weights are in the folder `vae` of
https://huggingface.co/BAAI/nova-d48w1024-osp480. There are two differences. Tokens are posterior means; NOVA samples
the posterior. Clips that do not fill their last tile are refused; NOVA drops the rest.

Long clips are processed in tiles of 17 frames (5 latent frames). Neighbouring tiles share one frame, and the later
tile's result for it is dropped, without blending. Each tile is processed like the first of a clip, so the network's
memory does not grow with the clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from arvid import hub
from arvid.contracts import TokenGrid, TokenSpec, UserError, VideoTokenizer
from arvid.importing import match
from arvid.nn.hyperparameters import plain
from arvid.ranges import above, at_least
from arvid.tokenizers.open_sora_plan.network import CausalConv3d, Decoder, Encoder

__all__ = ["OpenSoraPlan"]

TILE_FRAMES = 17
TILE_LATENTS = 5
"""Length of a tile in frames and in latent frames. Neighbouring tiles share one."""
STRIDES = (4, 8, 8)
LOG_VARIANCE_RANGE = (-30.0, 20.0)
FIXED = {
    "_class_name": "AutoencoderKLOpenSora",
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "act_fn": "silu",
    "shift_factor": None,
}
VIDEO_LEVELS = {"down_block_types": [False, False, True, True], "up_block_types": [True] * 4}
"""Required values in the published configuration: this network has no options for them."""
BLOCKS = {"down_block_types": "DownEncoderBlock", "up_block_types": "UpDecoderBlock"}
OPTIONS = {
    "channels": "block_out_channels",
    "latent_channels": "latent_channels",
    "num_groups": "norm_num_groups",
    "scaling_factor": "scaling_factor",
}
"""Constructor's argument -> key in the published configuration."""


class OpenSoraPlan(VideoTokenizer):
    """The autoencoder, untrained; `from_published` reads the weights. Defaults are the published values.

    Args:
        channels: channels of each of the four levels, from pixels to latents.
        latent_channels: channels of a token.
        num_groups: groups of each group norm; must divide all channels.
        scaling_factor: tokens are latents times this factor.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, ...] = (128, 256, 512, 512),
        latent_channels: int = 4,
        num_groups: int = 32,
        scaling_factor: float = 0.18215,
    ) -> None:
        super().__init__()
        at_least(1).require(
            channels=channels, latent_channels=latent_channels, num_groups=num_groups
        )
        above(0).require(scaling_factor=scaling_factor)
        if len(channels) != 4 or any(c % num_groups for c in channels):
            raise UserError(
                f"The channels {channels} must be four multiples of num_groups={num_groups}."
            )
        self.hyperparameters = plain(
            channels=channels,
            latent_channels=latent_channels,
            num_groups=num_groups,
            scaling_factor=scaling_factor,
        )
        self.scaling_factor = scaling_factor
        self._spec = TokenSpec(
            "continuous", latent_channels, STRIDES, causal=True, exact_prefix=False
        )
        self.encoder = Encoder(channels, 2 * latent_channels, num_groups)
        self.quant_conv = CausalConv3d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = CausalConv3d(latent_channels, latent_channels, 1)
        self.decoder = Decoder(channels, latent_channels, num_groups)

    @classmethod
    def from_published(cls, source: str) -> OpenSoraPlan:
        """The autoencoder in a local folder or on the Hugging Face hub (see `arvid.hub`), in float32.

        Raises UserError if it cannot be read, is another autoencoder, or has other tensors (with a list of them).
        """
        try:
            tokenizer = cls(**_options(hub.read_config(source)))
            own = tokenizer.state_dict()
            state, _ = match(hub.read_tensors(source), own, {name: name for name in own})
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
        tokenizer.load_state_dict(state)
        return tokenizer

    @classmethod
    def untrained(cls, source: str) -> OpenSoraPlan:
        return cls(**_options(hub.read_config(source))) if Path(source).is_dir() else cls()

    def to_published(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Configuration and weights in the format of `from_published`."""
        levels = {
            key: [f"{BLOCKS[key]}{'3D' if video else '2D'}" for video in value]
            for key, value in VIDEO_LEVELS.items()
        }
        options = {key: self.hyperparameters[name] for name, key in OPTIONS.items()}
        return {**FIXED, **levels, **options}, self.state_dict()

    @property
    def spec(self) -> TokenSpec:
        return self._spec

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b t h w c"]:
        """Scaled posterior mean. Raises UserError for a clip that does not fill its tiles."""
        return self.encode_posterior(video)[0]

    def encode_posterior(
        self, video: Float[Tensor, "b 3 T H W"]
    ) -> tuple[Float[Tensor, "b t h w c"], Float[Tensor, "b t h w c"]]:
        """Raises UserError as `encode` does."""
        self.spec.grid(*video.shape[2:])
        _check_tiles(video.shape[2], TILE_FRAMES)
        tokens, std = zip(*self._encode_tiles([video]), strict=True)
        return torch.cat(tokens, dim=1), torch.cat(std, dim=1)

    def check_grid(self, grid: TokenGrid) -> None:
        """Raises UserError for latent frames that do not fill their tiles."""
        _check_tiles(self.spec.num_frames(grid), TILE_FRAMES)

    def decode(self, tokens: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b 3 T H W"]:
        """Raises UserError for latent frames that do not fill their tiles."""
        _check_tiles(tokens.shape[1], TILE_LATENTS)
        return torch.cat(list(self._decode_tiles([tokens])), dim=2)

    @torch.no_grad()
    def encode_stream(
        self, chunks: Iterable[Float[Tensor, "b 3 _ H W"]]
    ) -> Iterator[Float[Tensor, "b _ h w c"]]:
        """Tokens of each tile. Memory does not grow with the clip. Raises UserError as `encode` does."""
        for tokens, _ in self._encode_tiles(chunks):
            yield tokens

    @torch.no_grad()
    def decode_stream(
        self, chunks: Iterable[Float[Tensor, "b _ h w c"]]
    ) -> Iterator[Float[Tensor, "b 3 _ H W"]]:
        """Frames of each tile. Memory does not grow with the clip. Raises UserError as `decode` does."""
        yield from self._decode_tiles(chunks)

    def _encode_tiles(self, chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens of each tile, and their standard deviations."""
        for i, tile in enumerate(_tiles(chunks, TILE_FRAMES, dim=2)):
            self.spec.grid(*tile.shape[2:])
            mean, log_variance = self.quant_conv(self.encoder(tile)).chunk(2, dim=1)
            std = torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE))
            # Later tiles drop their first latent frame, which they share with the tile before.
            tokens, std = (
                rearrange(x[:, :, int(i > 0) :], "b c t h w -> b t h w c") * self.scaling_factor
                for x in (mean, std)
            )
            yield tokens, std

    def _decode_tiles(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        for i, tile in enumerate(_tiles(chunks, TILE_LATENTS, dim=1)):
            latent = rearrange(tile / self.scaling_factor, "b t h w c -> b c t h w")
            video: Tensor = self.decoder(self.post_quant_conv(latent)).clamp(-1, 1)
            yield video[:, :, 1:] if i else video


def _tiles(chunks: Iterable[Tensor], size: int, dim: int) -> Iterator[Tensor]:
    """Cut a clip into tiles whose last entry is the next tile's first; a shorter clip is one tile.

    Raises UserError if the last tile is not full.
    """
    kept: Tensor | None = None
    count = 0
    for chunk in chunks:
        kept = chunk if kept is None else torch.cat([kept, chunk], dim)
        while kept.shape[dim] >= size:
            yield kept.narrow(dim, 0, size)
            # The last entry of this tile is the first of the next one.
            kept = kept.narrow(dim, size - 1, kept.shape[dim] - size + 1)
            count += 1
    if kept is not None:
        _check_tiles(count * (size - 1) + kept.shape[dim], size)
        if not count:
            yield kept


def _check_tiles(count: int, size: int) -> None:
    """Raises UserError if `count` frames (or latent frames) do not fill tiles of `size`."""
    step = size - 1
    if count > size and (count - 1) % step:
        what = "frames" if size == TILE_FRAMES else "latent frames"
        below = 1 + (count - 1) // step * step
        raise UserError(
            f"{count} {what} do not fit this tokenizer: if more than {size}, they must be 1 + {step}·n "
            f"(the nearest are {below} and {below + step})."
        )


def _options(config: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments from the published configuration. Raises UserError if it is of another model."""
    missing = [key for key in (*OPTIONS.values(), *VIDEO_LEVELS) if key not in config]
    if missing:
        raise UserError(f"the configuration lacks {', '.join(missing)}.")
    faults = [
        f"{key} is {config[key]!r}, not {value!r}"
        for key, value in FIXED.items()
        if config.get(key, value) != value
    ]
    faults += [
        f"{key} is {config[key]}"
        for key, video in VIDEO_LEVELS.items()
        if ["3D" in block for block in config[key]] != video
    ]
    if faults:
        raise UserError(f"not the Open-Sora-Plan autoencoder of NOVA: {'; '.join(faults)}.")
    options = {name: config[key] for name, key in OPTIONS.items()}
    return {**options, "channels": tuple(options["channels"])}
