"""Cases of the rehearsal: each paradigm with each token type and head, tokenizers and feature networks."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from record import DeviceGenerator, Record, counted, to_device
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from arvid import registry
from arvid.contracts import (
    Condition,
    ContextSpec,
    Paradigm,
    Request,
    Size,
    TokenGrid,
    TokenSpec,
    VideoTokenizer,
)
from arvid.metrics.i3d import I3D
from arvid.nn.causal_conv import Backbone
from arvid.nn.draws import drawing_by
from arvid.nn.heads import DiffusionOptions
from arvid.nn.heads.categorical import CategoricalHead, CategoricalSampling
from arvid.nn.heads.diffusion_process import DiffusionSampling
from arvid.paradigms.next_token import NextToken
from arvid.paradigms.nova import NOVA
from arvid.planning.fake import at_quantile
from arvid.training.adversarial import Adversarial, Adversary, adaptive_weight
from arvid.training.optimizer import OptimizerConfig, build_optimizer
from arvid.training.step import one_or_nan

GRID = TokenGrid(2, 4, 16)
SMALL_GRID = TokenGrid(2, 1, 16)
"""For next-token prediction: it samples one token per step."""
SIZE = Size(dim=64, depth=3, num_heads=2, head_dim=32, head_depth=1)
CONTEXT = ContextSpec(text_dim=8, text_len=3, conditions={"label": 5, "motion": 1})
SPECS: dict[str, TokenSpec] = {
    "discrete": TokenSpec("discrete", 100, (4, 8, 8), True),
    "continuous": TokenSpec("continuous", 4, (4, 8, 8), True),
}
HEADS = {
    "ddpm": DiffusionOptions(),
    "flow": DiffusionOptions(process="flow"),
    "mar": DiffusionOptions(form="mar"),
}
BACKBONE = Backbone(
    base=8, multipliers=(1, 2), strides=((2, 2, 2),), num_units=1, num_mid_units=1, num_groups=2
)
ADVERSARIAL = Adversarial(
    channels=16, num_layers=1, discriminator="2d+3d", start_step=0, r1=1.0, r1_every=1, lecam=0.1
)
BATCH = 2
STEPS = {"diffusion_steps": 2, "discrete_steps": 2, "num_sets": 4}
"""Numbers of sampling steps, for the options that a paradigm has."""

Case = Callable[[], Record]


def all_cases() -> Iterator[tuple[str, Case]]:
    """The name of each case and the function that runs it."""
    for name in registry.names("paradigms"):
        cls = registry.get("paradigms", name)
        for token_type in cls.heads:
            for head in _heads(cls, token_type):
                build = partial(_paradigm, cls, token_type, head)
                what = f"{name} {head or token_type}"
                yield f"{what}: step", partial(training_step, build)
                yield f"{what}: clip", partial(generation, build)
    for name in ("vae3d", "magvit_fsq"):
        yield f"{name}: step", partial(tokenizer_step, name)
        yield f"{name}: clip", partial(coding, name)
    yield "i3d: features", features
    yield "categorical head: top-k and top-p", filtered_ids
    yield "nova: frame of 64 sets", frame_of_64_sets


def _heads(cls: type[Paradigm], token_type: str) -> list[str]:
    """Names of the diffusion heads for this type of tokens. An empty name: the paradigm's only head."""
    can_choose = "diffusion" in inspect.signature(cls).parameters
    return list(HEADS) if token_type == "continuous" and can_choose else [""]


def _paradigm(cls: Any, token_type: str, head: str) -> Paradigm:
    options = {"diffusion": HEADS[head]} if head else {}
    grid = SMALL_GRID if cls is NextToken else GRID
    model: Paradigm = cls(SPECS[token_type], grid, CONTEXT, SIZE, **options)
    return model


def _tokens(model: Paradigm, frames: int) -> Tensor:
    shape = (BATCH, frames, model.grid.h, model.grid.w)
    if model.spec.type == "discrete":
        return torch.zeros(shape, dtype=torch.long, device="cuda")
    return torch.zeros(*shape, model.spec.size, device="cuda")


def _condition() -> Condition:
    return Condition(
        text=torch.zeros(BATCH, 3, 8, device="cuda"),
        text_mask=torch.ones(BATCH, 3, dtype=torch.bool, device="cuda"),
        values={
            "label": torch.zeros(BATCH, dtype=torch.long, device="cuda"),
            "motion": torch.zeros(BATCH, device="cuda"),
        },
    )


def training_step(build: Callable[[], Paradigm]) -> Record:
    """A training step in bf16 with gradient clipping, a fused optimizer and EMA weights."""
    model = build().train()

    def losses() -> dict[str, Tensor]:
        with torch.autocast("cuda", torch.bfloat16), drawing_by(lambda f: at_quantile(f, 0.5)):
            return model.loss(_tokens(model, model.grid.t), _condition())

    return _counted_steps(model, losses)


def _counted_steps(model: torch.nn.Module, losses: Callable[[], dict[str, Tensor]]) -> Record:
    kept: dict[str, Any] = {}

    def step() -> None:
        found = losses()
        (found["loss"] * one_or_nan(found)).backward()
        trained = [p for p in model.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in trained if p.grad is not None])
        clip_grads_with_norm_(trained, 1.0, norm)
        kept["optimizer"].found_inf = (~norm.isfinite()).float()
        kept["optimizer"].step()
        kept["optimizer"].zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(kept["averages"], list(model.parameters()), 0.01)

    def first() -> None:
        """The first step, which makes moments and cached masks."""
        to_device(model)
        config = OptimizerConfig(lr=1e-3, schedule="constant")
        kept["optimizer"] = build_optimizer(model, config, max_steps=10, fused=True)["optimizer"]
        kept["averages"] = [p.detach().clone() for p in model.parameters()]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        kept["optimizer"].step()
        kept["optimizer"].zero_grad()
        with torch.no_grad():
            losses()

    return counted(step, before=first)


def generation(build: Callable[[], Paradigm]) -> Record:
    """The second clip of a model, with guidance. It continues a given frame if the paradigm can do so."""
    model = build().eval().requires_grad_(False)

    def clip() -> None:
        model.generate(
            Request(
                _condition(),
                model.grid,
                prefix=_tokens(model, 1) if model.takes_prefix else None,
                options=_few_steps(model),
                generator=DeviceGenerator(),
            )
        )

    def first() -> None:
        to_device(model)
        clip()

    return counted(clip, before=first)


def frame_of_64_sets() -> Record:
    """One frame of NOVA with guidance: 64 sets of 25 denoising steps each, as in the released code."""
    net = (
        NOVA(SPECS["continuous"], TokenGrid(1, 16, 16), CONTEXT, SIZE).eval().requires_grad_(False)
    )
    options = DiffusionSampling(guidance=2.0)

    def frame() -> None:
        request = Request(_condition(), TokenGrid(1, 16, 16), batch_size=BATCH, options=options)
        net.generate(dataclasses.replace(request, generator=DeviceGenerator()))

    def first() -> None:
        to_device(net)
        frame()

    return counted(frame, before=first)


def filtered_ids() -> Record:
    """Ids of 64 rows of logits after guidance, top-k and top-p."""
    head = CategoricalHead(16, 100).requires_grad_(False)
    options = CategoricalSampling(guidance=2.0, top_k=20, top_p=0.9)

    def draw() -> None:
        hidden = torch.zeros(4, 16, 16, device="cuda")
        head.sample(hidden, null_hidden=hidden, options=options, generator=DeviceGenerator())

    def first() -> None:
        to_device(head)
        draw()

    return counted(draw, before=first)


def _few_steps(model: Paradigm) -> Any:
    options = model.options_for(model.spec.type)(guidance=2.0)
    return options.replace(**{k: v for k, v in STEPS.items() if hasattr(options, k)})


def _tokenizer(name: str) -> VideoTokenizer:
    options = {"levels": (4, 4)} if name == "magvit_fsq" else {"latent_channels": 4}
    tokenizer: VideoTokenizer = registry.get("tokenizers", name)(backbone=BACKBONE, **options)
    return tokenizer


def tokenizer_step(name: str) -> Record:
    """The losses of tokenizer and discriminators, and both backward passes."""
    tokenizer, adversary = _tokenizer(name), Adversary(ADVERSARIAL)

    def step() -> None:
        video = torch.zeros(BATCH, 3, 5, 32, 32, device="cuda")
        reconstruction, losses = tokenizer.training_losses(video)
        loss = (reconstruction - video).abs().mean() + losses.get("loss", 0)
        adversarial = adversary.generator_loss(reconstruction)
        loss = loss + adaptive_weight(loss, adversarial, reconstruction) * adversarial
        other, parts = adversary.discriminator_loss(video, reconstruction, 0)
        factor = one_or_nan({"loss": loss, **parts})
        (loss * factor).backward()
        (other * factor).backward()

    def first() -> None:
        to_device(tokenizer)
        to_device(adversary)

    return counted(step, before=first)


def coding(name: str) -> Record:
    """Encode a clip, then decode the tokens: all at once, and as a stream."""
    tokenizer = _tokenizer(name).eval().requires_grad_(False)

    def round_trip() -> None:
        tokens = tokenizer.encode(torch.zeros(BATCH, 3, 5, 32, 32, device="cuda"))
        tokenizer.decode(tokens)
        list(tokenizer.decode_stream(iter(tokens.split(1, dim=1))))

    return counted(round_trip, before=lambda: to_device(tokenizer))


def features() -> Record:
    """Features of I3D, the network of FVD."""
    network = I3D(bn_eps=1e-3)

    def run() -> None:
        network(torch.zeros(1, 3, 16, 224, 224, device="cuda"))

    return counted(run, before=lambda: to_device(network))
