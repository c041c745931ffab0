"""vae3d: continuous tokens from a causal 3D variational autoencoder.

Encoder and decoder are those of `magvit_fsq`; only the bottleneck differs. Each latent position is a Gaussian (mean and
log-variance) with a KL loss towards the standard normal. Tokens are the posterior means, normalised per channel to zero
mean and unit variance. Training measures these statistics, and they are stored with the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from arvid.contracts import TokenSpec, VideoTokenizer
from arvid.nn.causal_conv import PUBLISHED, Backbone, CausalDecoder, CausalEncoder, StreamState
from arvid.nn.draws import randn_like
from arvid.nn.hyperparameters import plain
from arvid.ranges import at_least

LOG_VARIANCE_RANGE = (-30.0, 20.0)
FIRST_LOG_VARIANCE = -4.0
"""Initial log-variance. With 0, the noise of a standard normal would make training give up most channels at first."""
SMALLEST_SHARE = 0.01
"""Smallest weight of a training batch in the running statistics of the latents."""


class VAE3D(VideoTokenizer):
    """Gaussian bottleneck between the causal encoder and decoder.

    Args:
        backbone: size of encoder and decoder.
        latent_channels: channels of a token.
        kl_weight: weight of the KL divergence (nats per latent number) in the loss.
    """

    latent_shift: Tensor
    """Running mean of the latents, (C,)."""
    latent_scale: Tensor
    """Running standard deviation of the latents, (C,)."""
    num_measured: Tensor
    """Number of batches in the running statistics."""

    def __init__(
        self,
        *,
        backbone: Backbone = PUBLISHED,
        latent_channels: int = 16,
        kl_weight: float = 1e-3,
    ) -> None:
        super().__init__()
        at_least(1).require(latent_channels=latent_channels)
        at_least(0).require(kl_weight=kl_weight)
        self.hyperparameters = plain(
            backbone=backbone,
            latent_channels=latent_channels,
            kl_weight=kl_weight,
        )
        self.kl_weight = kl_weight
        self._spec = TokenSpec("continuous", latent_channels, backbone.total_stride, causal=True)
        self.encoder = CausalEncoder(backbone, 2 * latent_channels)
        self.decoder = CausalDecoder(backbone, latent_channels)
        self.encoder.start_at(
            torch.tensor([0.0, FIRST_LOG_VARIANCE]).repeat_interleave(latent_channels)
        )
        self.register_buffer("latent_shift", torch.zeros(latent_channels))
        self.register_buffer("latent_scale", torch.ones(latent_channels))
        self.register_buffer("num_measured", torch.zeros((), dtype=torch.int64))

    @property
    def spec(self) -> TokenSpec:
        return self._spec

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b t h w c"]:
        """Normalised posterior mean. Raises UserError if the strides do not divide the clip."""
        return self._scaled(self.posterior(video)[0])

    def encode_posterior(
        self, video: Float[Tensor, "b 3 T H W"]
    ) -> tuple[Float[Tensor, "b t h w c"], Float[Tensor, "b t h w c"]]:
        mean, log_variance = self.posterior(video)
        std = rearrange(torch.exp(0.5 * log_variance), "b c t h w -> b t h w c")
        return self._scaled(mean), std / self.latent_scale

    def decode(self, tokens: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b 3 T H W"]:
        video: Tensor = self.decoder(self._unscaled(tokens))
        return video.clamp(-1, 1)

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Memory does not grow with the clip. Raises UserError if the strides do not divide a chunk."""
        state = StreamState()
        for video in chunks:
            with torch.no_grad():
                tokens = self._scaled(self.posterior(video, state)[0])
            yield tokens

    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Memory does not grow with the clip."""
        state = StreamState()
        for tokens in chunks:
            with torch.no_grad():
                video = self.decoder(self._unscaled(tokens), state).clamp(-1, 1)
            yield video

    def posterior(
        self, video: Float[Tensor, "b 3 T H W"], state: StreamState | None = None
    ) -> tuple[Float[Tensor, "b c t h w"], Float[Tensor, "b c t h w"]]:
        """Mean and log-variance of the latent (not normalised) of a clip or of the next chunk of a stream."""
        later_chunk = state is not None and state.started
        self.spec.grid(*video.shape[2:], later_chunk=later_chunk)
        mean, log_variance = self.encoder(video, state).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

    def _scaled(self, mean: Tensor) -> Tensor:
        return (rearrange(mean, "b c t h w -> b t h w c") - self.latent_shift) / self.latent_scale

    def _unscaled(self, tokens: Tensor) -> Tensor:
        latent = tokens * self.latent_scale + self.latent_shift
        return rearrange(latent, "b t h w c -> b c t h w")

    def training_losses(
        self, video: Float[Tensor, "b 3 T H W"]
    ) -> tuple[Float[Tensor, "b 3 T H W"], dict[str, Tensor]]:
        """Reconstruction from a posterior sample; `loss` = kl_weight · `kl`, with `kl` in nats per latent number."""
        mean, log_variance = (x.float() for x in self.posterior(video))
        latent = mean + torch.exp(0.5 * log_variance) * randn_like(mean)
        reconstruction: Tensor = self.decoder(latent)
        if self.training:
            self._measure(mean)
        # KL(N(mean, variance) || N(0, 1)) in closed form, averaged over all latent numbers
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return reconstruction, {"loss": self.kl_weight * kl, "kl": kl}

    @torch.no_grad()
    def _measure(self, mean: Tensor) -> None:
        """Update shift and scale with a batch of latents (B, C, t, h, w): first a plain, then an exponential mean.

        The variance is over all batches: within batches plus between their means.
        """
        self.num_measured += 1
        share = (1 / self.num_measured).clamp_min(SMALLEST_SHARE)
        values = mean.detach().float().transpose(0, 1).flatten(1)  # (C, N)
        step = values.mean(1) - self.latent_shift
        within = values.var(1, unbiased=False)
        # Law of total variance for a mixture with weights (1 - share) and share, whose means differ by `step`:
        # (1 - s) old + s within + s (1 - s) step^2.
        before = self.latent_scale.square() + share * step.square()
        variance = (1 - share) * before + share * within
        self.latent_shift += share * step
        self.latent_scale.copy_(variance.sqrt().clamp_min(1e-5))
