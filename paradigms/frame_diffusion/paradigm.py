"""Frame diffusion: one network denoises the latent frames of a clip, each frame at its own noise level.

The options cover a family of published systems. Defaults are FAR's (arXiv 2503.19325).

| options | system |
|---|---|
| attention full, levels common | diffusion of the whole clip (Latte, arXiv 2401.03048) |
| attention full, levels independent | diffusion forcing with a transformer (DFoT, arXiv 2502.06764) |
| attention causal, levels independent | causal diffusion forcing (arXiv 2407.01392) |
| the same with a share of clean frames | FAR |
| attention causal, history clean copy | teacher forcing (ACDiT, arXiv 2412.07720) |
| levels non-decreasing | pyramid (AR-Diffusion, arXiv 2503.07418) |

Different from FAR: levels are not rounded to a table of 1000; and see `arvid.nn.denoiser`. Ids are masked or replaced
by other ids (`arvid.nn.noise`), and the network predicts the clean ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from arvid.contracts import (
    Condition,
    ContextSpec,
    Paradigm,
    Request,
    SamplingOptions,
    Size,
    TokenGrid,
    Tokens,
    TokenSpec,
    UserError,
)
from arvid.nn.attend import BlockCausal, CleanCopy
from arvid.nn.by_frame import losses_by_frame
from arvid.nn.conditioner import ContextEmbedder, warn_once
from arvid.nn.denoiser import CLEAN_TIME, Denoiser, initialise
from arvid.nn.draws import draw
from arvid.nn.frame_conditions import FrameEmbedder
from arvid.nn.heads import HEADS
from arvid.nn.heads.categorical import CategoricalHead
from arvid.nn.heads.diffusion_process import DiffusionSampling
from arvid.nn.metric_noise import build_noise
from arvid.nn.noise import ContinuousNoise, DiscreteNoise, GaussianNoise
from arvid.nn.noise_levels import LevelDraw, Levels, draw_levels, fused_snr_weight
from arvid.nn.positions import CodeForm
from arvid.nn.tokens import unpatchify
from arvid.paradigms.frame_diffusion.sampling import (
    ClipSampler,
    FrameDiffusionSampling,
    clip_windows,
    num_steps,
    require_history_guidance,
    window_schedule,
)
from arvid.ranges import SHARE, above, at_least

EPSILON = 1e-9
"""Added to the number of tokens in a clip's mean loss, which may be 0."""


class FrameDiffusion(Paradigm):
    """A transformer over all latent frames of a clip that denoises them jointly.

    Args:
        spec, grid, context, size: see `arvid.contracts.Paradigm`. The network has no token head: `size.head_dim` and
            `size.head_depth` are not used.
        attention: "causal": a frame sees itself and the frames before it. "full": all see each other.
        levels: noise levels of the frames in training: "common" to all frames of a clip, "independent", or independent
            and then sorted: "non-decreasing".
        history: earlier frames that a frame sees in training: the "noisy" ones, or a "clean copy" of them, which
            doubles the sequence. A clean copy needs causal attention and `clean_share` 0.
        clean_share: probability that a frame has no noise in training. Clean frames have their own time embedding, and
            are not part of the loss.
        level_draw: distribution of the levels; by default "logit-normal" for continuous tokens, "cosine" for masks and
            "uniform" for random ids.
        shift: shift of the levels towards noise, in training and sampling (`arvid.nn.noise.shifted`); 1: no shift.
        continuous_noise, discrete_noise: the process for either token type, see `arvid.nn.noise`. "metric" needs a
            tokenizer that gives its code vectors.
        loss_weight: "uniform", or "fused snr" (DFoT; continuous noise "v" only).
        stagger: denoising steps between the starts of neighbouring frames in sampling. By default 0 with common levels;
            otherwise a frame starts when the previous one is finished.
        patch: side of the square of latents that is one token; 1 for ids.
        conditioning: whether conditions are context "tokens" in front of the frames, or, averaged, part of the
            "modulation", as FAR has it for classes.
        form: "far": sine-cosine codes of noise levels and positions as in FAR's released models; "arvid": as in the
            other paradigms.
        condition_dropout: probability that a clip's condition is dropped in training.

    Raises UserError for values outside their ranges, options that exclude each other, and a grid that the patches do
    not tile.
    """

    heads = HEADS  # continuous tokens have the diffusion head's sampling options, but the network itself denoises them
    options_class = FrameDiffusionSampling
    takes_frame_conditions = True

    def __init__(
        self,
        spec: TokenSpec,
        grid: TokenGrid,
        context: ContextSpec,
        size: Size,
        *,
        attention: Literal["causal", "full"] = "causal",
        levels: Levels = "independent",
        history: Literal["noisy", "clean copy"] = "noisy",
        clean_share: float = 0.1,
        level_draw: LevelDraw | None = None,
        shift: float = 1.0,
        continuous_noise: ContinuousNoise = "flow",
        discrete_noise: DiscreteNoise = "mask",
        loss_weight: Literal["uniform", "fused snr"] = "uniform",
        stagger: float | None = None,
        patch: int = 1,
        conditioning: Literal["tokens", "modulation"] = "tokens",
        form: CodeForm = "arvid",
        condition_dropout: float = 0.1,
    ) -> None:
        super().__init__(spec, grid)
        at_least(1).require(patch=patch)
        at_least(0).require(stagger=stagger)
        above(0).require(shift=shift)
        SHARE.require(clean_share=clean_share, condition_dropout=condition_dropout)
        self.causal = attention == "causal"
        self.levels = levels
        self.history = history
        self.clean_share = clean_share
        self.level_draw = level_draw or self._usual_draw(discrete_noise)
        self.shift = shift
        self.fused_snr = loss_weight == "fused snr"
        self.stagger = 0.0 if stagger is None and levels == "common" else stagger
        self.patch = patch
        self.condition_dropout = condition_dropout
        self.process = build_noise(spec, continuous_noise, discrete_noise)
        self._check()
        self.context = ContextEmbedder(context, size.dim)
        self.frame_conditions = FrameEmbedder(context, size.dim)
        self.network = Denoiser(
            self._input_spec(),
            grid,
            size,
            patch=patch,
            num_context=context.num_tokens,
            in_modulation=conditioning == "modulation",
            form=form,
        )
        self.head: CategoricalHead | nn.Linear
        if spec.type == "discrete":
            self.head = CategoricalHead(size.dim, spec.size)
        else:
            self.head = nn.Linear(size.dim, spec.size * patch**2)
        self._last_mask: tuple[object, BlockCausal] | None = None
        initialise(self)

    def _usual_draw(self, discrete_noise: DiscreteNoise) -> LevelDraw:
        if self.spec.type == "continuous":
            return "logit-normal"
        return "uniform" if discrete_noise in ("uniform", "metric") else "cosine"

    def _input_spec(self) -> TokenSpec:
        """Format of the network's input tokens, MASK included."""
        if isinstance(self.process, GaussianNoise):
            return self.spec
        return dataclasses.replace(self.spec, size=self.process.num_states)

    def _check(self) -> None:
        """Raise UserError for options that exclude each other."""
        grid, patch = self.grid, self.patch
        if grid.h % patch or grid.w % patch:
            raise UserError(f"Patches of {patch} do not tile a token grid of {grid.h}x{grid.w}.")
        if self.spec.type == "discrete" and patch != 1:
            raise UserError(
                f"Discrete tokens are predicted one by one: patch must be 1, not {patch}."
            )
        if self.history == "clean copy" and not (self.causal and self.clean_share == 0):
            raise UserError(
                "A clean copy of the history needs causal attention and clean_share 0, for it is always clean."
            )
        gaussian = isinstance(self.process, GaussianNoise) and self.process.kind == "v"
        if self.fused_snr and self.spec.type == "continuous" and not gaussian:
            raise UserError("The fused SNR weighs v-prediction: set continuous_noise to v.")

    @property
    def sees_clean(self) -> bool:
        """Whether training shows clean frames, with their own time embedding."""
        return self.history == "clean copy" or self.clean_share > 0

    @property
    def replaces_history(self) -> bool:
        """Whether sampling shows finished frames at the level of the active frames, as in training."""
        return self.levels == "common" and not self.sees_clean

    # Training

    def loss(self, tokens: Tokens, condition: Condition) -> dict[str, Tensor]:
        """Mean over clips of each clip's loss, which is the mean over its predicted tokens.

        Predicted tokens: the tokens of noisy frames, or only the masked ones with `mask` and `tube` noise. The loss is
        the squared error (continuous) or the cross-entropy (ids). `per_token` is the unweighted mean over the predicted
        tokens of the batch, `frame_i` over those of latent frame i.
        """
        batch, num_frames = tokens.shape[:2]
        drop = self._dropped(batch, tokens.device)
        context = self.context(condition, batch, drop)
        frame_conditions = self.frame_conditions(condition, batch, num_frames, drop)
        level, clean = draw_levels(
            batch,
            num_frames,
            levels=self.levels,
            distribution=self.level_draw,
            shift=self.shift,
            clean_share=self.clean_share,
            device=tokens.device,
        )
        noise = self.process.draw(tokens.shape[:4], tokens.device)
        noisy = self.process.corrupt(tokens, noise, level)
        times = (1000 * level).masked_fill(clean, CLEAN_TIME)
        hidden = self.denoise(context, tokens, noisy, times, frame_conditions)
        losses = self._losses(hidden, tokens, noise, level)  # (B, t, h, w)
        counted = ~clean[..., None, None].expand_as(losses)
        if not isinstance(self.process, GaussianNoise):
            counted = counted & self.process.is_masked(noisy)
        per_token = (losses * counted).sum() / counted.sum().clamp_min(1)
        frames = torch.arange(num_frames, device=tokens.device)[:, None, None].expand_as(losses)
        by_frame = losses_by_frame(losses, frames, num_frames, counted)
        if self.fused_snr and isinstance(self.process, GaussianNoise):
            signal, amplitude = self.process.amplitudes(level)
            weight = fused_snr_weight((signal / amplitude).square(), causal=self.causal)
            losses = losses * weight[..., None, None]
        return {"loss": clip_mean(losses, counted), "per_token": per_token.detach(), **by_frame}

    def _dropped(self, batch: int, device: torch.device) -> Bool[Tensor, " b"] | None:
        """True for clips whose condition is dropped; None outside training."""
        drawn = draw(partial(torch.rand, device=device), [batch]) < self.condition_dropout
        return drawn if self.training else None

    def denoise(
        self,
        context: Float[Tensor, "b s d"],
        tokens: Tokens,
        noisy: Tokens,
        times: Float[Tensor, "b t"],
        frame_conditions: Float[Tensor, "b t d"] | None = None,
    ) -> Float[Tensor, "b t l d"]:
        """Hidden states of the noisy frames of whole clips. With a clean copy of the history they see `tokens`."""
        num = noisy.shape[1]
        index = torch.arange(num, device=noisy.device)
        if self.history == "clean copy":
            noisy = torch.cat([tokens.to(noisy.dtype), noisy], dim=1)
            times = torch.cat([torch.full_like(times, CLEAN_TIME), times], dim=1)
            index = index.repeat(2)
            if frame_conditions is not None:
                frame_conditions = frame_conditions.repeat(1, 2, 1)
        hidden: Tensor = self.network(
            context,
            noisy,
            times,
            index,
            mask=self._mask(num, index),
            frame_conditions=frame_conditions,
        )
        return hidden[:, -num:]

    def _losses(
        self, hidden: Float[Tensor, "b t l d"], tokens: Tokens, noise: Tensor, level: Tensor
    ) -> Float[Tensor, "b t h w"]:
        """Loss of each token, predicted or not."""
        if isinstance(self.head, CategoricalHead):
            return self.head.loss(hidden.flatten(1, 2), tokens.flatten(1)).view(tokens.shape)
        assert isinstance(self.process, GaussianNoise)
        target = self.process.target(tokens, noise, level)
        return (self.to_frames(self.head(hidden).float()) - target).square().mean(-1)

    def _mask(self, num_frames: int, index: Tensor) -> BlockCausal | None:
        """Attention mask of a training step. The last one is kept for the next step."""
        if not self.causal:
            return None
        key = (num_frames, index.device)
        if self._last_mask is None or self._last_mask[0] != key:
            blocks = self.network.block_index(index)
            mask = BlockCausal(blocks)
            if self.history == "clean copy":
                noisy = torch.arange(len(blocks), device=index.device)
                mask = CleanCopy(blocks, noisy >= self.network.length(num_frames))
            self._last_mask = (key, mask)
        return self._last_mask[1]

    # Sampling

    def num_evaluations(
        self,
        grid: TokenGrid,
        *,
        prefix_frames: int = 0,
        options: SamplingOptions = SamplingOptions(),
    ) -> dict[str, int]:
        own = self.own_options(options, FrameDiffusionSampling)
        parts = clip_windows(self, grid.t, prefix_frames, own)
        return {"transformer": sum(len(window_schedule(self, part, own)) - 1 for part in parts)}

    @torch.no_grad()
    def stream(self, request: Request) -> Iterator[Tokens]:
        """As `Paradigm.stream`. Raises UserError for guidance by history of a model that cannot do without any."""
        options = self.own_options(request.options, FrameDiffusionSampling)
        if options.history_guidance != 1:
            require_history_guidance(self)
        if options.guided and self.context.spec.is_empty:
            warn_once("Guidance has no effect: this model has no conditions.")
        if request.prefix is not None:
            yield request.prefix
        yield from ClipSampler(self, options, request).pieces()

    def sampling_levels(self, options: SamplingOptions) -> list[float]:
        """Noise level by number of remaining steps: entry k is the level with k steps left."""
        new_shift = options.flow_shift if isinstance(options, DiffusionSampling) else None
        return self.process.levels(num_steps(options), self.shift, new_shift)

    # Tokens of frames

    def empty_tokens(self, shape: Sequence[int], device: torch.device) -> Tokens:
        """Placeholder tokens of shape (B, t, h, w), for `corrupt` at level 1."""
        if self.spec.type == "discrete":
            return torch.zeros(*shape, dtype=torch.long, device=device)
        return torch.zeros(*shape, self.spec.size, device=device)

    def to_frames(self, values: Float[Tensor, "b k l e"]) -> Float[Tensor, "b k h w c"]:
        """Continuous tokens of frames from patches."""
        frames = unpatchify(values.flatten(0, 1), self.patch, self.grid.h)
        return frames.unflatten(0, values.shape[:2])


def clip_mean(
    losses: Float[Tensor, "b t h w"], counted: Bool[Tensor, "b t h w"]
) -> Float[Tensor, ""]:
    """Mean over clips of the mean over a clip's counted tokens. A clip without counted tokens has loss 0."""
    num = counted.sum((1, 2, 3))
    return ((losses * counted).sum((1, 2, 3)) / (num + EPSILON)).mean()
