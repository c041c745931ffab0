"""Token heads: a categorical one for discrete tokens, a diffusion one for continuous tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from arvid.contracts import Size, TokenHead, TokenSpec, TokenType, UserError
from arvid.nn.heads.categorical import CategoricalHead
from arvid.nn.heads.diffusion import DiffusionHead, Form
from arvid.nn.heads.diffusion_process import Process
from arvid.nn.heads.learned_variance import LearnedVarianceHead
from arvid.ranges import above, at_least

HEADS: Mapping[TokenType, type[TokenHead]] = {
    "discrete": CategoricalHead,
    "continuous": DiffusionHead,
}
"""Token type -> head of `build_head`. A paradigm that calls `build_head` declares this as its `heads`."""


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions:
    """Options of the diffusion head besides its size. Raises UserError for values outside their ranges."""

    process: Process = "ddpm"
    """ddpm: squared-cosine DDPM that predicts the noise (NOVA's video model). flow: flow matching."""
    shift: float = 1.0
    """Shift of flow matching's times towards noise (see DiffusionHead); 1 in the release."""
    repeats: int = 4
    """Number of (time, noise) samples per token and training step."""
    rounded_noise: bool = False
    """Round noise levels to the model's precision, as NOVA's released code does. In bf16 the smallest levels are then
    0."""
    form: Form = "nova"
    """Network and loss: "nova", or "mar" with a learned variance (`ddpm` only)."""

    def __post_init__(self) -> None:
        above(0).require("diffusion.", shift=self.shift)
        at_least(1).require("diffusion.", repeats=self.repeats)


def build_head(
    spec: TokenSpec,
    size: Size,
    diffusion: DiffusionOptions,
    patch: int = 1,
    *,
    num_other_ids: int = 0,
    label_smoothing: float = 0.0,
) -> TokenHead:
    """The head for a token type.

    Args:
        spec: format of the tokens.
        size: width and depth of the head.
        diffusion: options of the diffusion head.
        patch: side of a square of latents that is predicted as one token; must be 1 for ids.
        num_other_ids, label_smoothing: see `CategoricalHead`.
    """
    if spec.type == "continuous" and diffusion.form == "mar":
        if diffusion.process != "ddpm" or diffusion.rounded_noise:
            raise UserError(
                "MAR's diffusion head has a learned variance, which is for ddpm without rounded_noise: "
                "set diffusion.form to nova, or leave process and rounded_noise out."
            )
        return LearnedVarianceHead(
            size.dim,
            spec.size * patch**2,
            width=size.head_dim,
            depth=size.head_depth,
            repeats=diffusion.repeats,
        )
    if spec.type == "continuous":
        return DiffusionHead(
            size.dim,
            spec.size * patch**2,
            width=size.head_dim,
            depth=size.head_depth,
            process=diffusion.process,
            shift=diffusion.shift,
            repeats=diffusion.repeats,
            rounded_noise=diffusion.rounded_noise,
        )
    if patch != 1:
        raise UserError(f"Discrete tokens are predicted one by one: patch must be 1, not {patch}.")
    return CategoricalHead(size.dim, spec.size, num_other_ids, label_smoothing=label_smoothing)
