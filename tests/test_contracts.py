"""What every registered paradigm and tokenizer promises; a new one is tested here by being registered.

Installed as `arvid.test_contracts`, for authors of plug-ins. So it uses no fixture of tests/conftest.py.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from arvid import registry
from arvid.contracts import (
    Condition,
    ContextSpec,
    Paradigm,
    Request,
    SamplingOptions,
    Size,
    TokenGrid,
    TokenSpec,
    TokenType,
    UserError,
    VideoTokenizer,
)
from arvid.nn.causal_conv import Backbone
from arvid.nn.heads import DiffusionHead
from arvid.options import help_texts, option_names
from arvid.paradigms.next_token import NextToken
from arvid.training.export import load_tokenizer, save_tokenizer

GRID = TokenGrid(3, 4, 16)
SIZE = Size(dim=32, depth=3, num_heads=2, head_dim=32, head_depth=1)
CONTEXT = ContextSpec(
    text_dim=8,
    text_len=3,
    conditions={"label": 5, "motion": 1},
    frame_conditions={"actions": 5},
    frames_per_latent=4,
)
SPECS: dict[str, TokenSpec] = {
    "discrete": TokenSpec("discrete", 11, (4, 8, 8), True),
    "continuous": TokenSpec("continuous", 4, (4, 8, 8), True),
}
BATCH = 2

paradigms = pytest.mark.parametrize(
    ("name", "token_type"),
    [
        pytest.param(name, token_type, id=f"{name}-{token_type}")
        for name in registry.names("paradigms")
        for token_type in registry.get("paradigms", name).heads
    ],
)
"""Each paradigm with each token type that it supports."""
tokenizers = pytest.mark.parametrize("name", registry.names("tokenizers"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws the same random numbers, whichever tests run before it."""
    torch.manual_seed(0)


@pytest.fixture
def build() -> Callable[[str, TokenType], Paradigm]:
    """Builds a small paradigm with its default options."""

    def _build(name: str, token_type: TokenType) -> Paradigm:
        paradigm: Paradigm = registry.get("paradigms", name)(SPECS[token_type], GRID, CONTEXT, SIZE)
        return paradigm

    return _build


def random_tokens(token_type: str) -> Tensor:
    """Ids (B, t, h, w), or normal values (B, t, h, w, C), of a batch of clips with the grid GRID."""
    shape = (BATCH, GRID.t, GRID.h, GRID.w)
    spec = SPECS[token_type]
    if spec.type == "discrete":
        return torch.randint(spec.size, shape)
    return torch.randn(*shape, spec.size)


def some_condition() -> Condition:
    """Text features, with padding in the first clip, and the conditions of CONTEXT for a batch of clips."""
    return Condition(
        text=torch.randn(BATCH, 3, 8),
        text_mask=torch.tensor([[True, True, False], [True, True, True]]),
        values={
            "label": torch.tensor([1, 4]),
            "motion": torch.tensor([0.5, 2.0]),
            "actions": torch.randint(5, (BATCH, GRID.t, 4)),
        },
    )


def some_prefix(model: Paradigm, num_frames: int) -> Tensor | None:
    """Given latent frames, where some are wanted and the paradigm says that it takes any."""
    if not (model.takes_prefix and num_frames):
        return None
    return random_tokens(model.spec.type)[:, :num_frames]


def options(model: Paradigm, **changes: Any) -> SamplingOptions:
    """The model's options, with as few denoising steps as possible."""
    own = model.options_for(model.spec.type)()
    fewer = {name: 2 for name in ("diffusion_steps", "discrete_steps") if hasattr(own, name)}
    return own.replace(**fewer, **changes)


@paradigms
def test_loss_is_finite_and_reaches_every_parameter(
    build: Any, name: str, token_type: TokenType
) -> None:
    """Each trained parameter has a gradient that is not 0 in at least one of 64 losses."""
    model = build(name, token_type)
    unreached = [name for name, p in model.named_parameters() if p.requires_grad]
    for _ in range(64):  # a mask leaves out a part, and few conditions are dropped
        losses = model.loss(random_tokens(token_type), some_condition())
        assert torch.isfinite(losses["loss"])
        losses["loss"].backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        unreached = [n for n in unreached if gradients[n] is None or not gradients[n].any()]
        if not unreached:
            break
    assert unreached == []


@paradigms
def test_generates_the_grid_and_keeps_the_prefix(
    build: Any, name: str, token_type: TokenType
) -> None:
    """Tokens have the shape and type of the tokenizer's, ids are in its vocabulary, and a prefix is not changed."""
    model = build(name, token_type).eval()
    prefix = some_prefix(model, 1)
    tokens = model.generate(Request(some_condition(), GRID, prefix=prefix, options=options(model)))
    assert tokens.shape == random_tokens(token_type).shape
    assert tokens.dtype == random_tokens(token_type).dtype
    if prefix is not None:
        assert torch.equal(tokens[:, :1], prefix)
    if token_type == "discrete":
        assert tokens.min() >= 0
        assert tokens.max() < SPECS["discrete"].size


@paradigms
def test_pieces_of_a_stream_are_the_whole(build: Any, name: str, token_type: TokenType) -> None:
    """The frames of `stream`, joined, are those of `generate` with the same seed."""
    model = build(name, token_type).eval()
    condition = some_condition()

    def request() -> Request:
        generator = torch.Generator().manual_seed(0)
        return Request(condition, GRID, options=options(model), generator=generator)

    assert torch.equal(torch.cat(list(model.stream(request())), dim=1), model.generate(request()))


@paradigms
def test_every_sampling_option_is_explained(build: Any, name: str, token_type: TokenType) -> None:
    """Each sampling option has a help text for the command line."""
    cls = build(name, token_type).options_for(token_type)
    assert all(help_texts(cls).get(option) for option in option_names(cls))


@paradigms
def test_a_seed_decides_what_is_generated(build: Any, name: str, token_type: TokenType) -> None:
    """The same seed gives the same tokens, and another seed gives others."""
    model = build(name, token_type).eval()
    condition = some_condition()

    def draw(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        tokens: Tensor = model.generate(
            Request(condition, GRID, options=options(model), generator=generator)
        )
        return tokens

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@paradigms
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_cache_changes_nothing(
    build: Any, name: str, token_type: TokenType, guidance: float
) -> None:
    """Sampling with the cache gives the same tokens as without it, up to rounding."""
    model = build(name, token_type).eval()
    condition, prefix = some_condition(), some_prefix(model, 1)
    drawn = [
        model.generate(
            Request(
                condition,
                GRID,
                prefix=prefix,
                options=options(model, guidance=guidance, use_cache=use_cache),
                generator=torch.Generator().manual_seed(0),
            )
        )
        for use_cache in (True, False)
    ]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-4, atol=1e-5)


@paradigms
@pytest.mark.parametrize("prefix_frames", [0, 1])
def test_evaluations_are_said_beforehand(
    build: Any, name: str, token_type: TokenType, prefix_frames: int
) -> None:
    """`on_step` is called as often as `num_evaluations` says."""
    model = build(name, token_type).eval()
    prefix = some_prefix(model, prefix_frames)
    if prefix is None and prefix_frames:
        pytest.skip(f"{name} says that it takes no prefix")
    steps: list[int] = []
    model.generate(
        Request(
            some_condition(),
            GRID,
            prefix=prefix,
            options=options(model),
            on_step=lambda: steps.append(1),
        )
    )
    said = model.num_evaluations(GRID, prefix_frames=prefix_frames, options=options(model))
    assert len(steps) == next(iter(said.values()))


@paradigms
def test_the_condition_matters_and_may_be_absent(
    build: Any, name: str, token_type: TokenType
) -> None:
    """The loss depends on the condition, and clips can be generated without one."""
    model = build(name, token_type).eval()
    tokens = random_tokens(token_type)
    losses = []
    for condition in (some_condition(), Condition()):
        torch.manual_seed(0)
        losses.append(model.loss(tokens, condition)["loss"].item())
    assert losses[0] != losses[1]
    assert (
        model.generate(Request(Condition(), GRID, batch_size=3, options=options(model))).shape[0]
        == 3
    )


@paradigms
def test_weights_survive_saving(build: Any, name: str, token_type: TokenType) -> None:
    """A model with the state dict of another generates the same tokens."""
    model = build(name, token_type).eval()
    other = build(name, token_type).eval()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    condition = some_condition()
    drawn = [
        m.generate(
            Request(
                condition, GRID, options=options(model), generator=torch.Generator().manual_seed(0)
            )
        )
        for m in (model, other)
    ]
    assert torch.equal(drawn[0], drawn[1])


@paradigms
def test_conditions_per_frame_act_from_their_frame_on(
    build: Any, name: str, token_type: TokenType
) -> None:
    """Other actions in the last frame change its loss, and no frame before it where the paradigm is causal."""
    model = build(name, token_type).eval()
    if not model.takes_frame_conditions:
        pytest.skip(f"{name} says that it takes no conditions per frame")
    given, tokens = some_condition(), random_tokens(token_type)
    actions = given.values["actions"].clone()
    actions[:, -1] = (actions[:, -1] + 1) % 5
    other = dataclasses.replace(given, values={**given.values, "actions": actions})
    losses, drawn = [], []
    for condition in (given, other):
        torch.manual_seed(0)
        losses.append(model.loss(tokens, condition)["loss"].item())
        generator = torch.Generator().manual_seed(0)
        request = Request(condition, GRID, options=options(model), generator=generator)
        drawn.append(model.generate(request))
    assert losses[0] != losses[1]
    assert not model.is_causal or torch.equal(drawn[0][:, :-1], drawn[1][:, :-1])


@paradigms
def test_conditions_of_a_clip_of_another_length_are_refused(
    build: Any, name: str, token_type: TokenType
) -> None:
    """Conditions per frame must have as many latent frames as the clips."""
    model = build(name, token_type).eval()
    if not model.takes_frame_conditions:
        pytest.skip(f"{name} says that it takes no conditions per frame")
    request = Request(some_condition(), GRID.with_frames(2), options=options(model))
    with pytest.raises(UserError, match="3 latent frames, but the clips have 2"):
        model.generate(request)


SMALL_TOKENIZERS: dict[str, dict[str, Any]] = {
    "cosmos_dv": {
        "channels": (8, 8, 8, 8),
        "num_blocks": 1,
        "latent_channels": 6,
        "patch": 2,
        "strides": (4, 8, 8),
    },
    "larp": {
        "size": (2, 16, 24),
        "patch": (2, 8, 8),
        "rows": 4,
        "columns": 6,
        "dim": 8,
        "depth": 1,
        "num_heads": 2,
        "num_codes": 11,
        "channels": 4,
    },
    "omnitokenizer": {
        "dim": 8,
        "encoder_blocks": "tw",
        "decoder_blocks": "t",
        "temporal_depth": 1,
        "num_heads": 2,
        "head_dim": 4,
        "hidden": 8,
        "window": 1,
        "strides": (2, 4, 4),
        "num_codes": 11,
        "channels": 4,
    },
    "open_magvit2": {"channels": (4, 8, 8, 8), "bits": 6, "num_blocks": 1, "num_groups": 2},
    "open_sora_plan": {"channels": (4, 4, 8, 8), "num_groups": 2},
    "pretrained": {
        "class_name": "AutoencoderKLWan",
        "config": {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    },
    "tats": {"base": 4, "strides": (2, 4, 4), "num_codes": 11, "channels": 4},
}
"""Options of those whose defaults are too large for a test."""


def small_tokenizer(name: str) -> VideoTokenizer:
    """A small one where the class has arvid's backbone or stands in the table, else one with its default options."""
    cls = registry.get("tokenizers", name)
    backbone = Backbone(
        base=8,
        multipliers=(1, 2),
        strides=((2, 2, 2),),
        num_units=1,
        num_mid_units=0,
        num_groups=2,
    )
    options = SMALL_TOKENIZERS.get(name, {})
    if "backbone" in inspect.signature(cls).parameters:
        options = {"backbone": backbone}
    tokenizer: VideoTokenizer = cls(**options)
    return tokenizer.eval()


def some_video(tokenizer: VideoTokenizer, num_frames: int = 3) -> Tensor:
    """Noise that is encoded as `num_frames` latent frames of 2 x 3 tokens or more."""
    _, height, width = tokenizer.spec.strides
    rows, columns = math.lcm(16, height), math.lcm(24, width)
    frames = tokenizer.spec.num_frames(TokenGrid(num_frames, 1, 1))
    return torch.rand(1, 3, frames, rows, columns) * 2 - 1


@tokenizers
def test_tokenizer_round_trip_has_the_promised_shapes(name: str) -> None:
    """Tokens have the grid, size and type of `spec`. The decoded video has the clip's shape and is in [-1, 1]."""
    tokenizer = small_tokenizer(name)
    video = some_video(tokenizer)
    tokens = tokenizer.encode(video)
    grid = tokenizer.spec.grid(*video.shape[2:])
    assert tokens.shape[:4] == (1, grid.t, grid.h, grid.w)
    back = tokenizer.decode(tokens)
    assert back.shape == video.shape
    assert back.abs().max() <= 1
    if tokenizer.spec.type == "discrete":
        assert tokens.dtype == torch.int64
        assert tokens.max() < tokenizer.spec.size
    else:
        assert tokens.shape[4] == tokenizer.spec.size


@tokenizers
def test_tokens_of_a_prefix_are_the_prefix_of_the_tokens(name: str) -> None:
    """A causal tokenizer encodes the first frames of a clip to the first tokens of the clip."""
    tokenizer = small_tokenizer(name)
    if not (tokenizer.spec.causal and tokenizer.spec.exact_prefix):
        pytest.skip(f"{name} does not say that it is causal to the last digit")
    video = some_video(tokenizer)
    given = tokenizer.spec.num_frames(TokenGrid(2, 1, 1))
    whole, first = tokenizer.encode(video), tokenizer.encode(video[:, :, :given])
    torch.testing.assert_close(whole[:, :2], first, rtol=0, atol=1e-5)


@tokenizers
def test_tokenizer_training_reaches_every_parameter(name: str) -> None:
    """Each parameter has a gradient from the reconstruction and the losses of the bottleneck."""
    tokenizer = small_tokenizer(name).train()
    if type(tokenizer).training_losses is VideoTokenizer.training_losses:
        pytest.skip(f"{name} cannot be trained")
    reconstruction, losses = tokenizer.training_losses(some_video(tokenizer))
    (reconstruction.square().mean() + losses.get("loss", 0)).backward()
    assert [n for n, p in tokenizer.named_parameters() if p.grad is None] == []


@tokenizers
def test_tokenizer_survives_saving(name: str, tmp_path: Any) -> None:
    """A tokenizer that was saved and loaded gives the same tokens."""
    tokenizer = small_tokenizer(name)
    save_tokenizer(tokenizer, tmp_path / "t.safetensors", {})
    loaded = load_tokenizer(tmp_path / "t.safetensors")
    video = some_video(tokenizer)
    assert torch.equal(tokenizer.encode(video), loaded.encode(video))


def test_a_paradigm_that_generates_nothing_is_refused_when_it_is_defined() -> None:
    """A subclass must define `generate` or `stream`."""
    methods = {**dict.fromkeys(("loss", "num_evaluations"), Paradigm.generate), "heads": {}}
    type("Speaking", (Paradigm,), {**methods, "stream": Paradigm.generate})
    with pytest.raises(TypeError, match="Silent must define generate or stream"):
        type("Silent", (Paradigm,), methods)


def test_tokens_that_a_paradigm_does_not_support_are_refused_when_it_is_built() -> None:
    """The type of the tokens must be in the paradigm's `heads`."""

    class Continuous(NextToken):
        heads = {"continuous": DiffusionHead}  # noqa: RUF012

    assert Continuous(SPECS["continuous"], GRID, CONTEXT, SIZE).spec.type == "continuous"
    with pytest.raises(UserError, match="supports continuous tokens, not discrete ones"):
        Continuous(SPECS["discrete"], GRID, CONTEXT, SIZE)


def test_a_request_has_the_batch_size_of_its_condition() -> None:
    """`batch_size` counts only if the condition is empty."""
    assert Request(some_condition(), GRID, batch_size=7).batch_size == BATCH
    assert Request(Condition(), GRID, batch_size=7).batch_size == 7
