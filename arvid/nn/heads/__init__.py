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
"""The heads that `build_head` builds: `Paradigm.heads` of a paradigm that uses it for both token types."""


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions:
    """The diffusion head's options that its size does not say. Raises UserError for values outside their ranges."""

    process: Process = "ddpm"
    """Squared-cosine DDPM that predicts the noise (NOVA's video model), or flow matching."""
    shift: float = 1.0
    """How far flow matching's times move towards noise (see DiffusionHead); 1 as released."""
    repeats: int = 4
    """Times and noises drawn per token and training step."""
    rounded_noise: bool = False
    """Whether noise levels are rounded to the model's precision, as in NOVA's released code: in bf16 the smallest ones
    are then 0."""
    form: Form = "nova"
    """Network and loss: NOVA's, or "mar": MAR's, with a learned variance (`ddpm` only)."""

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
    """The head for a kind of tokens. A token may be a patch x patch square of latents, not of ids.

    `num_other_ids` and `label_smoothing` are of the categorical head.
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
