"""Diffusion head: a small MLP that denoises one continuous token given its hidden state.

After MAR (arXiv 2406.11838), in the form of NOVA's released code (arXiv 2412.14169): adaptive norms, one more affine
LayerNorm before gate and residual, a two-layer MLP on the condition, no zero initialisation, no learned variance. In
training, every token and repeat has its own time and noise.

Shared parts are computed once. Training: the condition for all repeats, and the embedding of each of the 1000 times for
all tokens. Sampling: the condition for all denoising steps, and the modulations of many steps in one matrix product.

R repeats, P passes of guidance (conditional, null, ...), C numbers of a token, M width of the MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.contracts import SamplingOptions, TokenHead, UserError
from arvid.lasting import constant
from arvid.nn.attention import gather_rows
from arvid.nn.checkpointing import checkpointed
from arvid.nn.cuda_graph import graphs_of, may_capture
from arvid.nn.draws import draw, randn_like
from arvid.nn.heads.diffusion_process import (
    NUM_TRAIN_STEPS,
    DiffusionSampling,
    Process,
    PublishedStep,
    Step,
    guide,
    sampling_steps,
    training_table,
)
from arvid.nn.positions import SCALAR_CODE_DIM, scalar_code

Form = Literal["nova", "mar"]
"""Network: NOVA's, or MAR's with a learned variance (see `arvid.nn.heads.learned_variance`)."""
MAX_ROWS = 4096
"""Maximum rows (tokens x denoising steps) of modulations that one matrix product computes."""


@dataclass(frozen=True)
class WholeFrame:
    """Draw noise for a whole frame although only some of its tokens are sampled, as the released code does.

    It is slower, but needed for numbers equal to that code's.
    """

    ids: Int[Tensor, "b n"]
    """Indices of the sampled tokens in the frame."""
    noise: Callable[[], Float[Tensor, "b l c"]]
    """Draws noise for all L tokens of the frame."""
    as_published: bool = False
    """Also compute as the released code: DDPM by `PublishedStep`, and everything in the type of the noise."""


def _mlp(dim_in: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim_in, dim), nn.SiLU(), nn.Linear(dim, dim))


class _AdaptiveBlock(nn.Module):
    """x + gate · LN(MLP(LN(x) · (1 + scale) + shift)), where scale, shift and gate depend on the condition.

    In MAR's form there is no norm on the MLP's output, and the first norm is affine.
    """

    def __init__(self, width: int, form: Form) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=form == "mar")
        self.mlp = _mlp(width, width)
        self.norm2 = nn.LayerNorm(width) if form == "nova" else nn.Identity()

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
        """`scale` already includes the 1."""
        x_hat = torch.addcmul(shift, self.norm1(x), scale)
        return torch.addcmul(x, gate, self.norm2(self.mlp(x_hat)))


class DiffusionMLP(nn.Module):
    """Noisy tokens (..., C), times (...) and conditions (..., M) -> predictions (..., C).

    MAR's form returns (..., 2C): the second half predicts the variance.
    """

    def __init__(
        self, dim: int, channels: int, width: int, depth: int, form: Form = "nova"
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, width)
        self.time = _mlp(SCALAR_CODE_DIM, width)
        self.condition = _mlp(dim, width) if form == "nova" else nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_AdaptiveBlock(width, form) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, channels if form == "nova" else 2 * channels)

    def embed_time(self, time: Tensor) -> Tensor:
        """Times (...) from 0 to 1000 -> (..., M)."""
        code = scalar_code(time, cos_first=True).to(self.embed.weight.dtype)
        out: Tensor = self.time(code)
        return out

    def modulations(self, embedded: Tensor) -> list[Tensor]:
        """Modulations (..., M) from the sum of embedded time and condition (..., M).

        They are 1 + scale, shift and gate for each block, then 1 + scale and shift for the last norm.
        """
        activated = F.silu(embedded)
        found = []
        for part in (*self.blocks, self):
            scale, *others = part.modulation(activated).split(embedded.shape[-1], dim=-1)
            found += [1 + scale, *others]
        return found

    def forward(self, x: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """The prediction for noisy tokens (..., C)."""
        x = self.embed(x)
        for i, block in enumerate(self.blocks):
            x = block(x, *modulations[3 * i : 3 * i + 3])
        scale, shift = modulations[-2:]
        out: Tensor = self.head(torch.addcmul(shift, self.norm(x), scale))
        return out


class DiffusionHead(TokenHead):
    """Denoises tokens of `channels` numbers given hidden states of width `dim`.

    `ddpm`: 1000 steps, squared-cosine schedule, predicts the noise; ancestral sampling with leading spacing.
    `flow`: x = σ·noise + (1-σ)·token, predicts noise - token; Euler sampling, logit-normal training times. `shift` s
    moves times of training and sampling towards noise: σ becomes sσ / (1 + (s-1)σ). With s = 1, only about 1 % of
    training times have σ > 0.9. There a token must be predicted from the hidden state alone, so a short training hardly
    learns to use the hidden state.

    `rounded_noise` rounds the noise level to the model's precision before the amplitude is computed, as the released
    code does. In bf16, tokens then get no noise at the 21 smallest times of `ddpm`.
    """

    options_class: ClassVar[type[SamplingOptions]] = DiffusionSampling
    form: ClassVar[Form] = "nova"
    gradient_checkpointing = False
    """Compute the network again in the backward pass, one repeat at a time (see `arvid.nn.checkpointing`)."""
    _times: Tensor
    _levels: Tensor

    def __init__(
        self,
        dim: int,
        channels: int,
        *,
        width: int,
        depth: int,
        process: Process = "ddpm",
        shift: float = 1.0,
        repeats: int = 4,
        rounded_noise: bool = False,
    ) -> None:
        super().__init__()
        if process == "ddpm" and shift != 1:
            raise UserError("A diffusion head's shift is for the flow process; ddpm has none.")
        self.channels = channels
        self.process = process
        self.repeats = repeats
        self.shift = shift
        self.rounded_noise = rounded_noise
        self.net = DiffusionMLP(dim, channels, width, depth, self.form)
        times, levels = training_table(process, shift)
        # Stored as the bits of float32: `.to(bfloat16)` would also convert float buffers, and ᾱ must not be rounded.
        self.register_buffer("_times", times.view(torch.int32), persistent=False)
        self.register_buffer("_levels", levels.view(torch.int32), persistent=False)

    @property
    def train_times(self) -> Float[Tensor, " steps"]:
        """The time of each training step, as the network's input."""
        return self._times.view(torch.float32)

    @property
    def train_levels(self) -> Float[Tensor, " steps"]:
        """The noise level of each training step; float32 for any precision of the network."""
        return self._levels.view(torch.float32)

    # Training

    def loss(
        self,
        hidden: Float[Tensor, "b n d"],
        target: Float[Tensor, "b n c"],
    ) -> Float[Tensor, "b n"]:
        """Squared error of each token's prediction, averaged over its numbers and the repeats."""
        condition = self.net.condition(hidden)  # shared by all repeats
        target = target.float().expand(self.repeats, *target.shape)  # (R, B, N, C)
        index = self._draw_times(target.shape[:-1], target.device)
        noisy, goal = self._corrupt(target, randn_like(target, axis=1), index, hidden.dtype)
        if self.gradient_checkpointing:
            parts = zip(noisy.split(1), index.split(1), strict=True)
            predicted = torch.cat([checkpointed(self._denoise, *part, condition) for part in parts])
        else:
            predicted = self._denoise(noisy, index, condition)
        return self._errors(predicted.float(), goal, target, index).mean((0, -1))  # (B, N)

    def _denoise(self, noisy: Tensor, index: Tensor, condition: Tensor) -> Tensor:
        """The network's predictions (R, B, N, C) for noisy tokens at the training times with these indices."""
        modulations = self.net.modulations(self._embed_times(index) + condition)
        out: Tensor = self.net(noisy.to(condition.dtype), modulations)
        return out

    def _errors(self, predicted: Tensor, goal: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """Loss of each number (R, B, N, C) of the tokens, at training times with these indices (R, B, N)."""
        return (predicted - goal).square()

    def _draw_times(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Indices into the table of training times: uniform (ddpm) or logit-normal (flow)."""
        if self.process == "ddpm":
            return draw(partial(torch.randint, NUM_TRAIN_STEPS, device=device), shape, axis=1)
        uniform = draw(partial(torch.randn, device=device), shape, axis=1).sigmoid()
        return (NUM_TRAIN_STEPS * uniform).long().clamp_max(NUM_TRAIN_STEPS - 1)

    def _corrupt(
        self, tokens: Tensor, noise: Tensor, index: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Noisy tokens and the prediction target, in float32."""
        level = self.train_levels
        if self.rounded_noise:
            level = level.to(_autocast_dtype(tokens.device, dtype))
        if self.process == "ddpm":  # level is ᾱ: x = √ᾱ token + √(1-ᾱ) noise
            signal, amplitude = level.sqrt(), (1 - level).sqrt()
            goal = noise
        else:  # level is σ: x = (1-σ) token + σ noise
            signal, amplitude = 1 - level, level
            goal = noise - tokens
        signal, amplitude = signal.float()[index][..., None], amplitude.float()[index][..., None]
        return signal * tokens + amplitude * noise, goal

    def _embed_times(self, index: Tensor) -> Tensor:
        """Embedded times (..., M). For more tokens than times, the whole table is embedded once, then looked up."""
        if index.numel() < NUM_TRAIN_STEPS:
            return self.net.embed_time(self.train_times[index])
        return F.embedding(index, self.net.embed_time(self.train_times))

    # Sampling

    @torch.no_grad()
    def sample(
        self,
        hidden: Float[Tensor, "b n d"],
        *,
        options: SamplingOptions,
        null_hidden: Float[Tensor, "b n d"] | None = None,
        image_hidden: Float[Tensor, "b n d"] | None = None,
        image_guidance: float = 0.0,
        generator: torch.Generator | None = None,
        frame: WholeFrame | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Sample a token for each hidden state.

        Args:
            hidden: conditional hidden states.
            options: sampling options.
            null_hidden: hidden states of the negative context, for guidance.
            image_hidden: hidden states from the frames without the text, for image guidance.
            image_guidance: scale of image guidance.
            generator: source of random numbers.
            frame: draw noise for all tokens of a frame, of which the hidden states are a subset.
        """
        options = DiffusionSampling.of(options)
        # All P guidance passes are one batch.
        present = [h for h in (hidden, null_hidden, image_hidden) if h is not None]
        passes = torch.stack(present)  # (P, B, N, D)
        shape = (*hidden.shape[:2], self.channels)
        device = hidden.device
        # Noise is float32: the sampler's arithmetic is cheap compared with the network.
        if frame is not None:
            return self._denoised(passes, _repeated(frame.noise), options, image_guidance, frame)
        if not hidden.is_cuda:
            draws = _repeated(partial(torch.randn, shape, device=device, generator=generator))
            return self._denoised(passes, draws, options, image_guidance)
        # On GPUs one call draws the noise of all steps, outside of the graph.
        num_draws = 1 + sum(step.noise != 0 for step in self._steps(options))
        noise = torch.randn((num_draws, *shape), device=device, generator=generator)

        def denoised(passes: Tensor, noise: Tensor) -> Tensor:
            return self._denoised(passes, iter(noise), options, image_guidance)

        if self.training or not may_capture():
            return denoised(passes, noise)
        return graphs_of(self)((options, image_guidance), denoised, passes, noise).clone()

    def _denoised(
        self,
        passes: Float[Tensor, "p b n d"],
        noise: Iterator[Float[Tensor, "b l c"]],
        options: DiffusionSampling,
        image_guidance: float,
        frame: WholeFrame | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Tokens from the hidden states of all P guidance passes, by all denoising steps.

        `noise` yields the first noisy tokens, then the noise that each step adds.
        """
        condition = self.net.condition(passes)  # (P, B, N, M)
        x = next(noise)
        dtype = x.dtype
        published = frame is not None and frame.as_published
        steps = self._steps(options, as_published=published)
        guided = [step for step in steps if step.time >= options.guidance_trunc]
        unguided = steps[len(guided) :]  # times decrease, so these are the last steps
        for part, given in ((guided, condition), (unguided, condition[:1])):
            for step, modulations in self._modulated(part, given):
                predicted = self._predict(x, modulations, frame)
                deviation = options.noise_temperature * self._deviation(step, predicted)
                predicted = guide(predicted[..., : self.channels], options, image_guidance)
                x = step.mean(x, predicted).to(dtype)
                if step.noise:
                    x = x + deviation * next(noise)
        return x if frame is None else gather_rows(x, frame.ids).float()

    def _steps(self, options: DiffusionSampling, *, as_published: bool = False) -> tuple[Step, ...]:
        return sampling_steps(
            self.process,
            options.diffusion_steps,
            self.shift,
            options.flow_shift,
            as_published=as_published,
        )

    def _deviation(self, step: Step, predicted: Float[Tensor, "p b n k"]) -> float | Tensor:
        """Standard deviation of the noise that a step adds."""
        return step.deviation if isinstance(step, PublishedStep) else step.noise

    def _modulated(
        self, steps: Sequence[Step], condition: Float[Tensor, "p b n m"]
    ) -> Iterator[tuple[Step, list[Tensor]]]:
        """Each step with its modulations (P, B, N, ...), computed for several steps at a time."""
        num_together = max(MAX_ROWS // condition[..., 0].numel(), 1)
        times = constant(tuple(step.time for step in steps), condition.device, torch.float32)
        for i in range(0, len(steps), num_together):
            together = slice(i, i + num_together)
            embedded = self.net.embed_time(times[together])[:, None, None, None] + condition
            of_steps = zip(steps[together], *self.net.modulations(embedded), strict=True)
            for step, *modulations in of_steps:
                yield step, modulations

    def _predict(
        self, x: Tensor, modulations: Sequence[Tensor], frame: WholeFrame | None
    ) -> Float[Tensor, "p b n c"]:
        """The network's predictions in the type of x. For other tokens of a `frame`, the prediction is the token."""
        rows = x if frame is None else gather_rows(x, frame.ids)
        predicted = self.net(rows.to(modulations[0].dtype), modulations).to(x.dtype)
        if frame is None:
            return predicted
        index = frame.ids[..., None].expand_as(predicted)
        return x.expand(len(predicted), *x.shape).scatter(2, index, predicted)


def _repeated(draw: Callable[[], Tensor]) -> Iterator[Tensor]:
    """One drawn tensor after another, without end."""
    while True:
        yield draw()


def _autocast_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type of matrix products on a device: autocast's, or else `dtype`."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype
