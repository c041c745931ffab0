"""Builds the modules of a configuration on fake tensors, without files of weights.

Tokenizers whose file is missing, and text encoders, are replaced by stand-ins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arvid import registry
from arvid.contracts import Condition, TokenType, UserError, VideoTokenizer
from arvid.metrics.perceptual import untrained
from arvid.nn.conditions import ClassId, Vector, condition
from arvid.nn.frame_conditions import group_frames
from arvid.nn.text import TextEncoder, TextShape
from arvid.planning.fake import FakeNetworks, without_storage
from arvid.planning.setting import Setting
from arvid.training.cli import find_config
from arvid.training.export import embedded, load_tokenizer
from arvid.training.generator_module import GeneratorModule, Tokenizers, build_generator
from arvid.training.instantiate import build, instantiate, named
from arvid.training.losses import Perceptual, PerceptualLoss
from arvid.training.tokenizer_module import TokenizerModule
from arvid.yaml_files import load_yaml


@dataclasses.dataclass(frozen=True)
class PlannedTokenizer:
    """A tokenizer that may lack its weights."""

    tokenizer: VideoTokenizer
    note: str
    """What was assumed about the tokenizer. Empty if the setting's own file was read."""

    def load(self, token_type: TokenType) -> VideoTokenizer:
        """The tokenizer, frozen. A GeneratorModule calls this in place of `Tokenizers.load`."""
        return self.tokenizer.requires_grad_(False).eval()


class TextStandIn(TextEncoder):
    """Zeros of the shape of a frozen text encoder's output."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        self.dim = shape.dim
        self.num_tokens = shape.num_tokens
        self.vocab_size = shape.vocab_size

    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        size = (len(prompts), self.num_tokens)
        mask = torch.ones(size, dtype=torch.bool)
        if self.vocab_size is not None:
            return torch.zeros(size, dtype=torch.long), mask
        return torch.zeros(*size, self.dim), mask


class _UntrainedPerceptual(PerceptualLoss):
    """The perceptual loss with random weights."""

    def __init__(self, options: Perceptual) -> None:
        self.options = options
        self.network = untrained(options.net)


def plan_tokenizer(setting: Setting, override: str | None = None) -> PlannedTokenizer:
    """The tokenizer of a generator's setting.

    `override` names a configuration of a tokenizer, such as "tokenizers/magvit_fsq-base". Without it, a missing file is
    replaced by a configuration of arvid: the one for the setting (tokenizers/clips-vae3d for settings/clips), or else a
    published one. Raises UserError if the tokens have another type than the run's.
    """
    token_type: TokenType = setting.model["token_type"]
    planned = _of_name(setting, token_type, override)
    found = planned.tokenizer.spec.type
    if found != token_type:
        raise UserError(
            f"The tokens of {override or 'the tokenizer'} are {found}, not {token_type}."
        )
    return planned


def _of_name(setting: Setting, token_type: TokenType, override: str | None) -> PlannedTokenizer:
    if override is not None:
        return PlannedTokenizer(_of_config(override), f"tokenizer: {override}")
    name = Tokenizers(**setting.model["tokenizers"]).of(token_type)
    short, _, source = name.partition(":")
    if source and short in registry.names("tokenizers"):
        with without_storage():
            tokenizer = registry.get("tokenizers", short).untrained(source)
        return PlannedTokenizer(tokenizer, "")
    if name in embedded() or Path(name).is_file():
        return PlannedTokenizer(load_tokenizer(name), "")
    for config in _candidates(setting.name):
        tokenizer = _of_config(config)
        if tokenizer.spec.type == token_type:
            note = f"{name} does not exist, so its network is that of {config} (--tokenizer names another)"
            return PlannedTokenizer(tokenizer, note)
    raise UserError(f"There is no tokenizer {name!r}. Name its configuration with --tokenizer.")


def _candidates(setting: str) -> list[str]:
    """Configurations of tokenizers: those of the setting first, then the published ones."""
    folder = Path(str(files("arvid"))) / "configs/tokenizers"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    own = [name for name in names if setting and name.startswith(f"{setting}-")]
    return [f"tokenizers/{n}" for n in (*own, *(n for n in names if n.endswith("-published")))]


def _of_config(name: str) -> VideoTokenizer:
    config = load_yaml(str(find_config(name)))
    with without_storage():
        tokenizer: VideoTokenizer = build(
            "tokenizers", config["model"]["init_args"]["tokenizer"], what="The tokenizer"
        )
    return tokenizer


def plan_generator(
    setting: Setting,
    tokenizer: PlannedTokenizer,
    fakes: FakeNetworks,
    *,
    depth: int | None = None,
) -> GeneratorModule:
    """The generator of a setting on fake tensors. `depth` replaces the number of transformer blocks of its size."""
    model = dict(setting.model)
    size = {**model["size"], "depth": depth or model["size"]["depth"]}
    model.update(
        size=size,
        clip_shape=list(setting.clip_shape),
        num_classes=setting.num_classes,
        value_names=setting.value_names,
    )
    with without_storage():
        given = {"tokenizers": tokenizer, "text": _text_encoder(model["text"])}
        module = build_generator(model, given=given)
    fakes.take(module)
    return module


def _text_encoder(config: Mapping[str, Any] | None) -> TextEncoder | None:
    if config is None:
        return None
    cls, options = named("text_encoders", config, what="The text encoder")
    shape = cls.shape_of(options)
    if shape is not None:
        return TextStandIn(shape)
    encoder: TextEncoder = build("text_encoders", config, what="The text encoder")
    return encoder


def plan_tokenizer_training(setting: Setting, fakes: FakeNetworks) -> TokenizerModule:
    """The module that trains a setting's tokenizer, on fake tensors, with all losses switched on."""
    model = dict(setting.model)
    perceptual = model.pop("perceptual", None)
    if model.get("adversarial"):
        model["adversarial"] = {**model["adversarial"], "start_step": 0}
    tokenizer = model.pop("tokenizer")
    with without_storage():
        given = {"tokenizer": build("tokenizers", tokenizer, what="The tokenizer")}
        module = instantiate(TokenizerModule, model, what="The model", given=given)
        if perceptual:
            module.perceptual = _UntrainedPerceptual(Perceptual(**perceptual))
    fakes.take(module)
    if module.perceptual is not None:
        network = module.perceptual.network
        fakes.take(network)
        network.to = lambda *_: network  # type: ignore[method-assign]  # it is on fake tensors already
    module.discriminator_guard = _NoGuard()  # type: ignore[assignment]
    return module


class _NoGuard:
    """Replaces DiscriminatorGuard, which reads the value of the loss."""

    def update(self, loss: Tensor, step: int) -> None: ...


def example_condition(
    module: GeneratorModule, batch_size: int, num_frames: int | None = None
) -> Condition:
    """The condition of a batch: zeros for each condition of the model. Call it while fake networks run."""
    conditioner = module.conditioner
    captions = ["a"] * batch_size if conditioner.text is not None else None
    given: Condition = conditioner(caption=captions)
    frames = num_frames or module.clip_shape[0]
    for name, size in conditioner.sizes.items():
        kind = condition(name)
        shape = [batch_size]
        if kind.per_frame:
            shape.append(frames)
        if isinstance(kind, Vector):
            shape.append(size)
        value = torch.zeros(shape, dtype=torch.long if isinstance(kind, ClassId) else torch.float32)
        if kind.per_frame:
            value = group_frames(value, module.tokenizer.spec, kind.unknown)
        given.values[name] = value
    return given


def example_tokens(module: GeneratorModule, batch_size: int, num_frames: int) -> Tensor:
    """Tokens (B, t, h, w[, C]) of `num_frames` latent frames, as zeros. Call it while fake networks run."""
    spec = module.tokenizer.spec
    grid = spec.grid(*module.clip_shape)
    size = (batch_size, num_frames, grid.h, grid.w)
    if spec.type == "discrete":
        return torch.zeros(size, dtype=torch.long)
    return torch.zeros(*size, spec.size)
