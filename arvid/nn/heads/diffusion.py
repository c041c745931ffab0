"""Diffusion head: a small MLP that denoises one continuous token given its hidden state.

After MAR (arXiv 2406.11838) in NOVA's form (arXiv 2412.14169, released code): adaptive norms, one more affine
LayerNorm before gate and residual, a two-layer MLP on the condition, nothing initialised to zero, no learned
variance. Training adds noise with its own time for every token and repeat.

What does not change is computed once: in training the condition for all repeats, and the embedding of each of the
1000 times for all tokens; in sampling the condition for all denoising steps, and the modulations of many steps in one
matrix product.

R repeats, P passes of guidance (given, null, ...), C numbers of a token, M width of the MLP.
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
from arvid.nn.attention import gather_rows
from arvid.nn.draws import draw, randn_like
from arvid.nn.heads.diffusion_process import (
    NUM_TRAIN_STEPS,
    DiffusionSampling,
    Process,
    Step,
    guide,
    sampling_steps,
    training_table,
)
from arvid.nn.positions import SCALAR_CODE_DIM, scalar_code

Form = Literal["nova", "mar"]
"""Whose network: NOVA's, or MAR's with a learned variance (see `arvid.nn.heads.learned_variance`)."""
MAX_ROWS = 4096
"""Modulations are made for so many tokens at once, over as many denoising steps as that allows."""


@dataclass(frozen=True)
class WholeFrame:
    """Noise drawn for a whole frame where only some of its tokens are wanted, as the released code does.

    Costs more than drawing what is needed; for numbers equal to that code's.
    """

    ids: Int[Tensor, "b n"]
    """Which tokens of the frame are wanted."""
    noise: Callable[[], Float[Tensor, "b l c"]]
    """Draws noise for all of them."""


def _mlp(dim_in: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim_in, dim), nn.SiLU(), nn.Linear(dim, dim))


class _AdaptiveBlock(nn.Module):
    """x + gate · LN(MLP(LN(x) · (1 + scale) + shift)); scale, shift and gate come from the condition.

    MAR's has no norm on the MLP's output, and the first one is affine.
    """

    def __init__(self, width: int, form: Form) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=form == "mar")
        self.mlp = _mlp(width, width)
        self.norm2 = nn.LayerNorm(width) if form == "nova" else nn.Identity()

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
        """`scale` has the 1 added."""
        x_hat = torch.addcmul(shift, self.norm1(x), scale)
        return torch.addcmul(x, gate, self.norm2(self.mlp(x_hat)))


class DiffusionMLP(nn.Module):
    """Noisy tokens (..., C), times (...) and conditions (..., M) -> predictions (..., C), or (..., 2C) in MAR's form,
    whose second half is about the variance."""

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
        """Of the sum of embedded time and condition (..., M): 1 + scale, shift and gate (..., M) for each block, and
        1 + scale and shift for the last norm."""
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

    `ddpm`: 1000 steps, squared-cosine, predicts the noise, ancestral sampling with leading spacing.
    `flow`: x = σ·noise + (1-σ)·token, predicts noise - token, Euler sampling; training times are
    logit-normal. `shift` s moves them and the sampler's towards noise: σ becomes sσ / (1 + (s-1)σ). At 1 hardly one
    training time in a hundred has σ > 0.9, where a token must come from the hidden state alone, so that a short
    training hardly learns to use it.

    With `rounded_noise` the noise level is rounded to the model's precision before its amplitude is taken, as the
    released code does: in bf16 tokens then get no noise at all at the 21 smallest times of `ddpm`.
    """

    options_class: ClassVar[type[SamplingOptions]] = DiffusionSampling
    form: ClassVar[Form] = "nova"
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
        # Bits of float32: a network that is moved to bf16 takes buffers of floats along, and ᾱ must not be rounded.
        self.register_buffer("_times", times.view(torch.int32), persistent=False)
        self.register_buffer("_levels", levels.view(torch.int32), persistent=False)

    @property
    def train_times(self) -> Float[Tensor, " steps"]:
        """The time of each training step, as the network is told."""
        return self._times.view(torch.float32)

    @property
    def train_levels(self) -> Float[Tensor, " steps"]:
        """The noise level of each training step, in float32 whatever the network's precision."""
        return self._levels.view(torch.float32)

    # Training

    def loss(
        self,
        hidden: Float[Tensor, "b n d"],
        target: Float[Tensor, "b n c"],
        weight: Float[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Squared error of each token's prediction, averaged over its numbers and the repeats."""
        condition = self.net.condition(hidden)  # the same for all repeats
        target = target.float().expand(self.repeats, *target.shape)  # (R, B, N, C)
        index = self._draw_times(target.shape[:-1], target.device)
        noisy, goal = self._corrupt(target, randn_like(target, axis=1), index, hidden.dtype)
        modulations = self.net.modulations(self._embed_times(index) + condition)
        predicted = self.net(noisy.to(condition.dtype), modulations)
        loss = self._errors(predicted.float(), goal, target, index).mean((0, -1))  # (B, N)
        return loss if weight is None else loss * weight

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
        """Noisy tokens and what is to be predicted, in float32."""
        level = self.train_levels
        if self.rounded_noise:
            level = level.to(_autocast_dtype(tokens.device, dtype))
        if self.process == "ddpm":  # level is the signal's share of the variance
            signal, amplitude = level.sqrt(), (1 - level).sqrt()
            goal = noise
        else:  # level is σ
            signal, amplitude = 1 - level, level
            goal = noise - tokens
        signal, amplitude = signal.float()[index][..., None], amplitude.float()[index][..., None]
        return signal * tokens + amplitude * noise, goal

    def _embed_times(self, index: Tensor) -> Tensor:
        """Embedded times (..., M): all of the table's once and looked up, where there are more tokens than times."""
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
        """Draw a token per hidden state.

        `image_hidden` is computed from the frames without the text, and `image_guidance` is the scale of guidance by
        it. With `frame` the noise is drawn for all tokens of a frame, of which the hidden states are some.
        """
        options = DiffusionSampling.of(options)
        batch, num, _ = hidden.shape
        given = [h for h in (hidden, null_hidden, image_hidden) if h is not None]
        condition = self.net.condition(torch.cat(given)).unflatten(0, (len(given), batch))
        shape = (batch, num, self.channels)

        def draw() -> Tensor:  # float32: the sampler's arithmetic is cheap beside the network
            if frame is not None:
                return frame.noise()
            return torch.randn(shape, device=hidden.device, generator=generator)

        x = draw()
        steps = self._steps(options)
        guided = [step for step in steps if step.time >= options.guidance_trunc]
        alone = steps[len(guided) :]
        for part, passes in ((guided, condition), (alone, condition[:1])):
            for step, modulations in self._modulated(part, passes):
                predicted = self._predict(x, modulations, frame)
                deviation = options.noise_temperature * self._deviation(step, predicted)
                predicted = guide(predicted[..., : self.channels], options, image_guidance)
                x = step.keep * x + step.output * predicted
                if step.noise:
                    x = x + deviation * draw()
        return x if frame is None else gather_rows(x, frame.ids)

    def _steps(self, options: DiffusionSampling) -> tuple[Step, ...]:
        return sampling_steps(self.process, options.diffusion_steps, self.shift, options.flow_shift)

    def _deviation(self, step: Step, predicted: Float[Tensor, "p b n k"]) -> float | Tensor:
        """Standard deviation of the noise that a step adds."""
        return step.noise

    def _modulated(
        self, steps: Sequence[Step], condition: Float[Tensor, "p b n m"]
    ) -> Iterator[tuple[Step, list[Tensor]]]:
        """Each step with its modulations (P, B, N, ...), made for several steps at a time."""
        num_together = max(MAX_ROWS // condition[..., 0].numel(), 1)
        for i in range(0, len(steps), num_together):
            together = steps[i : i + num_together]
            times = torch.tensor([step.time for step in together], device=condition.device)
            embedded = self.net.embed_time(times)[:, None, None, None] + condition
            for step, *modulations in zip(together, *self.net.modulations(embedded), strict=True):
                yield step, modulations

    def _predict(
        self, x: Tensor, modulations: Sequence[Tensor], frame: WholeFrame | None
    ) -> Float[Tensor, "p b n c"]:
        """The network's predictions in float32; tokens of a frame that are not wanted stand for themselves."""
        rows = x if frame is None else gather_rows(x, frame.ids)
        predicted = self.net(rows.to(modulations[0].dtype), modulations).float()
        if frame is None:
            return predicted
        index = frame.ids[..., None].expand_as(predicted)
        return x.expand(len(predicted), *x.shape).scatter(2, index, predicted)


def _autocast_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The precision that matrix products have on a device, for activations of a dtype."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype
