"""Diffusion head: a small MLP that denoises one continuous token given its hidden state.

After MAR (arXiv 2406.11838) in NOVA's form (arXiv 2412.14169, released code): adaptive norms, one more affine
LayerNorm before gate and residual, a two-layer MLP on the condition, nothing initialised to zero, no learned
variance. Training adds noise with its own time for every token and repeat; sampling runs diffusers' schedulers.
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor, nn

from arvid.contracts import SamplingOptions, TokenHead, UserError
from arvid.nn.positions import SCALAR_CODE_DIM, scalar_code

NUM_TRAIN_STEPS = 1000


def _mlp(dim_in: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim_in, dim), nn.SiLU(), nn.Linear(dim, dim))


class _AdaptiveBlock(nn.Module):
    """x + gate · LN(MLP(LN(x) · (1 + scale) + shift)); scale, shift and gate come from the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = _mlp(width, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(activated).chunk(3, dim=-1)
        out: Tensor = x + gate * self.norm2(self.mlp(self.norm1(x) * (1 + scale) + shift))
        return out


class DiffusionMLP(nn.Module):
    """Noisy tokens (..., C), times (...) and conditions (..., width) -> predictions (..., C)."""

    def __init__(self, dim: int, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, width)
        self.time = _mlp(SCALAR_CODE_DIM, width)
        self.condition = _mlp(dim, width)
        self.blocks = nn.ModuleList(_AdaptiveBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, channels)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """`condition` is `self.condition(hidden)`: it is the same for all times, so it is made once."""
        code = scalar_code(time, cos_first=True).to(x.dtype)
        activated = nn.functional.silu(self.time(code) + condition)
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, activated)
        scale, shift = self.modulation(activated).chunk(2, dim=-1)
        out: Tensor = self.head(self.norm(x) * (1 + scale) + shift)
        return out


class DiffusionHead(TokenHead):
    """Denoises tokens of `channels` numbers given hidden states of width `dim`.

    `ddpm`: 1000 steps, squared-cosine, predicts the noise, ancestral sampling with leading spacing.
    `flow`: x = σ·noise + (1-σ)·token, predicts noise - token, Euler sampling; training times are
    logit-normal. `shift` s moves them and the sampler's towards noise: σ becomes sσ / (1 + (s-1)σ). At 1 hardly one
    training time in a hundred has σ > 0.9, where a token must come from the hidden state alone, so that a short
    training hardly learns to use it.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        dim: int,
        channels: int,
        *,
        width: int,
        depth: int,
        process: Literal["ddpm", "flow"] = "ddpm",
        shift: float = 1.0,
        repeats: int = 4,
    ) -> None:
        super().__init__()
        if process == "ddpm" and shift != 1:
            raise UserError("A diffusion head's shift is for the flow process; ddpm has none.")
        self.channels = channels
        self.process = process
        self.repeats = repeats
        self.net = DiffusionMLP(dim, channels, width, depth)
        self.shift = shift
        self.scheduler = _scheduler(process, shift)
        if process == "ddpm":
            self.register_buffer("alphas_cumprod", self.scheduler.alphas_cumprod, persistent=False)

    def loss(
        self,
        hidden: Float[Tensor, "b n d"],
        target: Float[Tensor, "b n c"],
        weight: Float[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Squared error of each token's prediction, averaged over its numbers and the repeats."""
        condition = self.net.condition(hidden)
        target = target.expand(self.repeats, *target.shape)  # (R, B, N, C)
        noisy, time, goal = self._corrupt(target)
        predicted = self.net(noisy.to(hidden.dtype), time, condition)
        loss = (predicted.float() - goal).square().mean((0, -1))  # (B, N)
        return loss if weight is None else loss * weight

    def _corrupt(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy tokens, their times (0..1000) and what is to be predicted, in float32."""
        tokens = tokens.float()
        noise = torch.randn_like(tokens)
        shape = tokens.shape[:-1]
        if self.process == "ddpm":
            step = torch.randint(NUM_TRAIN_STEPS, shape, device=tokens.device)
            signal = self.alphas_cumprod[step][..., None]
            return signal.sqrt() * tokens + (1 - signal).sqrt() * noise, step.float(), noise
        uniform = torch.randn(shape, device=tokens.device).sigmoid()
        time = NUM_TRAIN_STEPS - (NUM_TRAIN_STEPS * uniform).floor()  # index into 1000..1
        sigma = time / NUM_TRAIN_STEPS
        sigma = self.shift * sigma / (1 + (self.shift - 1) * sigma)
        time, sigma = NUM_TRAIN_STEPS * sigma, sigma[..., None]
        return sigma * noise + (1 - sigma) * tokens, time, noise - tokens

    @torch.no_grad()
    def sample(
        self,
        hidden: Float[Tensor, "b n d"],
        *,
        options: SamplingOptions,
        null_hidden: Float[Tensor, "b n d"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b n c"]:
        batch, num, _ = hidden.shape
        states = hidden if null_hidden is None else torch.cat([hidden, null_hidden])
        condition = self.net.condition(states)
        self.scheduler.set_timesteps(options.diffusion_steps)
        x = torch.randn(
            batch, num, self.channels, device=hidden.device, generator=generator
        )  # float32: the scheduler's arithmetic is cheap beside the network
        for time in self.scheduler.timesteps:
            predicted = self._predict(x, time, condition, options.guidance)
            x = self.scheduler.step(predicted, time, x, generator=generator).prev_sample
        return x

    def _predict(self, x: Tensor, time: Tensor, condition: Tensor, guidance: float) -> Tensor:
        """The network's output at one time, guided if the condition has a null half."""
        copies = len(condition) // len(x)
        inputs = x.to(condition.dtype).repeat(copies, 1, 1)
        times = time.to(x.device, torch.float32).expand(inputs.shape[:-1])
        predicted: Tensor = self.net(inputs, times, condition).float()
        if copies == 1:
            return predicted
        given, null = predicted.chunk(2)
        return null + guidance * (given - null)


def _scheduler(process: str, shift: float) -> DDPMScheduler | FlowMatchEulerDiscreteScheduler:
    if process == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TRAIN_STEPS, shift=shift)
    return DDPMScheduler(
        num_train_timesteps=NUM_TRAIN_STEPS,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        timestep_spacing="leading",
        steps_offset=1,
    )
