"""The interfaces between arvid's parts: datasets, tokenizers, token heads and paradigms.

A video tokenizer turns frames into a grid of tokens; a paradigm factorises that grid autoregressively; a token head
models one token given a hidden state. Paradigm (order) and head (token type) are independent, so every paradigm of
arvid takes both types of tokens. This file does not depend on any concrete part.

Dimension letters, used in every module of arvid:
B batch, C channels, T H W frames and pixels, t h w the token grid (T', H', W' in the papers), S context
tokens, N sequence positions, D model width.
"""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from arvid.codes import Codes as Codes
from arvid.errors import (
    UserError as UserError,  # re-exported: implementations of the contracts raise it
)
from arvid.options import SamplingOptions as SamplingOptions
from arvid.options import compose
from arvid.ranges import at_least

Options = TypeVar("Options", bound=SamplingOptions)

TokenType = Literal["discrete", "continuous"]
Tokens = Tensor
"""Discrete: int64 (B, t, h, w). Continuous: float (B, t, h, w, C) of about unit variance."""


@dataclass(frozen=True)
class TokenGrid:
    """Size of the token grid: latent frames, rows, columns."""

    t: int
    h: int
    w: int

    @property
    def num_tokens(self) -> int:
        """Number of tokens of a clip."""
        return self.t * self.h * self.w

    @property
    def tokens_per_frame(self) -> int:
        """Number of tokens of a latent frame."""
        return self.h * self.w

    def with_frames(self, t: int) -> TokenGrid:
        """The same grid with another number of latent frames."""
        return dataclasses.replace(self, t=t)


@dataclass(frozen=True)
class TokenSpec:
    """The format of a tokenizer's tokens.

    `size` is the vocabulary size of discrete tokens, or the number of channels of continuous ones. `strides` are the
    (frames, rows, columns) of pixels per token. `causal`: a clip has 1 + n·F_T frames, and encoding a prefix of the
    frames gives the prefix of the tokens. If `exact_prefix` is false, it gives the prefix only approximately, as
    published tokenizers do whose norms see several frames at once.

    `codes` are the vectors behind the ids, if a discrete tokenizer has them. They are neither compared nor stored.
    """

    type: TokenType
    size: int
    strides: tuple[int, int, int]
    causal: bool
    exact_prefix: bool = True
    codes: Codes | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        at_least(1).require("a token's ", size=self.size, strides=self.strides)

    def grid(
        self, num_frames: int, height: int, width: int, *, later_chunk: bool = False
    ) -> TokenGrid:
        """Token grid of a clip. Raises UserError if the strides do not divide the clip.

        `later_chunk`: the frames continue a clip, so they do not include the first frame, which causal tokenizers
        encode by itself.
        """
        ft, fh, fw = self.strides
        first_alone = self.causal and not later_chunk
        if num_frames < 1:
            raise UserError(f"A clip has at least one frame, not {num_frames}.")
        if first_alone and (num_frames - 1) % ft:
            below = 1 + (num_frames - 1) // ft * ft
            raise UserError(
                f"{num_frames} frames do not fit this tokenizer: it takes 1 + {ft}·n frames "
                f"(the nearest are {below} and {below + ft})."
            )
        if not first_alone and num_frames % ft:
            raise UserError(f"{num_frames} frames are not a multiple of the temporal stride {ft}.")
        if height % fh or width % fw:
            raise UserError(
                f"{height}x{width} pixels do not fit this tokenizer: "
                f"height must be a multiple of {fh} and width of {fw}."
            )
        frames = 1 + (num_frames - 1) // ft if first_alone else num_frames // ft
        return TokenGrid(frames, height // fh, width // fw)

    def num_frames(self, grid: TokenGrid) -> int:
        """Number of frames of a clip with this grid."""
        return 1 + (grid.t - 1) * self.strides[0] if self.causal else grid.t * self.strides[0]

    def chunk_frames(self, num_frames: int, latent_frames: int) -> list[int]:
        """Frames of each chunk of a clip that is streamed in `latent_frames` at a time; the last may be shorter.

        `video.split(spec.chunk_frames(257, 2), dim=2)` cuts a clip of a causal tokenizer with temporal stride 4
        into chunks of 5, 8, 8, ... frames.
        """
        latents = self.grid(num_frames, *self.strides[1:]).t
        counts = [min(latent_frames, latents - i) for i in range(0, latents, latent_frames)]
        frames = [self.strides[0] * count for count in counts]
        frames[0] = self.num_frames(TokenGrid(counts[0], 1, 1))
        return frames


@dataclass
class Condition:
    """The conditions of a batch of clips. Each may be absent; all present ones have the same batch size."""

    text: Float[Tensor, "b s d"] | Int[Tensor, "b s"] | None = None
    """Text features, or word ids if `ContextSpec.text_vocab` is set."""
    text_mask: Bool[Tensor, "b s"] | None = None
    """True for words, False for padding."""
    values: dict[str, Tensor] = field(default_factory=dict)
    """Other conditions by name (see `arvid.nn.conditions`): (B,) or (B, K) per clip, (B, t, F[, K]) for the F frames of
    each latent frame."""
    negative_text: Float[Tensor, "b s d"] | None = None
    """Negative prompt of classifier-free guidance, in place of the null condition."""
    negative_text_mask: Bool[Tensor, "b s"] | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> Condition:
        """Apply `fn` to every present tensor."""
        mapped = {name: fn(value) for name, value in self._texts().items()}
        return Condition(**mapped, values={name: fn(value) for name, value in self.values.items()})

    def _texts(self) -> dict[str, Tensor]:
        """The present text tensors by field name."""
        names = ("text", "text_mask", "negative_text", "negative_text_mask")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def to(self, device: torch.device | str) -> Condition:
        """The condition with all its tensors on a device."""
        return self.map(lambda x: x.to(device))

    @property
    def batch_size(self) -> int | None:
        """Batch size, or None for an empty (unconditional) condition."""
        present = (*self._texts().values(), *self.values.values())
        return present[0].shape[0] if present else None


@dataclass(frozen=True)
class ContextSpec:
    """The conditions of a model. Its context embedder is built from this."""

    text_dim: int | None = None
    """Width of the text features; 0 for word ids, which the model embeds itself."""
    text_len: int = 0
    """Number of text tokens."""
    text_vocab: int | None = None
    """Number of word ids, if the text is given as word ids."""
    conditions: Mapping[str, int] = field(default_factory=dict)
    """Conditions per clip: name -> number of class ids or of vector components (1 for a number)."""
    frame_conditions: Mapping[str, int] = field(default_factory=dict)
    """Conditions per frame, in the same form."""
    frames_per_latent: int = 1
    """Frames per latent frame: the tokenizer's temporal stride."""

    @property
    def num_tokens(self) -> int:
        """Number of context tokens: those of the text, and one for each condition per clip."""
        text = self.text_len if self.text_dim is not None else 0
        return text + len(self.conditions)

    @property
    def is_empty(self) -> bool:
        """Whether the model has no conditions."""
        return not (self.num_tokens or self.frame_conditions)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of a paradigm's transformer.

    Raises UserError for numbers below 1 (`head_depth` may be 0), and if `num_heads` does not divide `dim`.
    """

    name: str = "custom"
    """Name in tables."""
    dim: int
    """Model width."""
    depth: int
    """Number of transformer blocks."""
    num_heads: int
    """Attention heads of a block."""
    head_dim: int = 256
    """Width of the diffusion head's MLP (continuous tokens only)."""
    head_depth: int = 3
    """Blocks of the diffusion head's MLP (continuous tokens only)."""

    def __post_init__(self) -> None:
        at_least(1).require("size.", dim=self.dim, depth=self.depth, num_heads=self.num_heads)
        at_least(1).require("size.", head_dim=self.head_dim)
        at_least(0).require("size.", head_depth=self.head_depth)
        if self.dim % self.num_heads:
            raise UserError(
                f"size.dim must be a multiple of size.num_heads, not {self.dim} with {self.num_heads} heads."
            )


@dataclass(frozen=True)
class Clip:
    """One example of a dataset: uint8 frames (T, H, W, 3) in RGB, and their annotations."""

    video: np.ndarray
    caption: str = ""
    label: int | None = None
    motion: float | None = None
    fps: float | None = None
    """Frames per second."""
    name: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """Values of further conditions by name (see `arvid.nn.conditions`): per clip, or per frame (T, ...)."""


class _Checked:
    """Checks subclasses at their definition: a concrete subclass must define all required attributes."""

    _required: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if inspect.isabstract(cls) or ABC in cls.__bases__:
            return
        missing = [name for name in cls._required if not _is_implemented(cls, name)]
        if missing:
            raise TypeError(f"{cls.__name__} must define {', '.join(missing)}")


def _is_implemented(cls: type, name: str) -> bool:
    attribute = getattr(cls, name, None)
    return attribute is not None and not getattr(attribute, "__isabstractmethod__", False)


class VideoDataset(_Checked, torch.utils.data.Dataset[Clip], ABC):
    """A finite, indexable set of clips. Item i is always the same clip."""

    _required = ("__len__", "__getitem__", "fingerprint")
    classes: tuple[str, ...] = ()
    """Names of the class labels, or empty."""
    value_names: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Names of the class ids or vector components of further conditions, by condition (see `arvid.nn.conditions`)."""
    has_captions: bool = True
    """False if it is known that no clip has a caption."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Clip: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the clips' content: files and options, not paths. It is the key of the token cache."""

    def earlier_fingerprint(self) -> str | None:
        """The fingerprint that an earlier version of arvid gave to these clips, if it differs.

        Older runs and records are recognised by it.
        """
        return None

    def __iter__(self) -> Iterator[Clip]:
        return (self[i] for i in range(len(self)))


class VideoTokenizer(_Checked, nn.Module, ABC):
    """Turns video (B, 3, T, H, W) in [-1, 1] into tokens and back."""

    _required = ("encode", "decode", "spec")

    @classmethod
    def untrained(cls, source: str) -> VideoTokenizer:
        """The network of a published tokenizer, without its weights; for `arvid plan`.

        `source` is that of the method `from_published`, if there is one. If it is no local folder, the network is that
        of the published models. Raises UserError by default.
        """
        raise UserError(f"{cls.__name__} cannot be planned without its weights ({source}).")

    @property
    @abstractmethod
    def spec(self) -> TokenSpec:
        """The format of the tokens."""

    @abstractmethod
    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Tokens:
        """Tokens of video in [-1, 1]. Raises UserError for a clip that `spec.grid` refuses."""

    def encode_posterior(self, video: Float[Tensor, "b 3 T H W"]) -> tuple[Tokens, Tokens]:
        """Means (the tokens of `encode`) and standard deviations of the Gaussian posterior.

        Raises UserError if there is no posterior: for ids, and for deterministic latents.
        """
        raise UserError(
            f"{type(self).__name__} has no posterior to sample from: leave data.posterior off."
        )

    @abstractmethod
    def decode(self, tokens: Tokens) -> Float[Tensor, "b 3 T H W"]:
        """Video in [-1, 1] (clamped)."""

    def check_grid(self, grid: TokenGrid) -> None:
        """Raise UserError for a grid that `decode` does not support, before it is generated. By default all grids are
        supported."""

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tokens]:
        """Tokens of each chunk (B, 3, T_i, H, W) of a long clip; joined along time, they are the clip's tokens.

        `TokenSpec.chunk_frames` gives the lengths of the chunks. There are no gradients. This default collects the
        whole clip first: a tokenizer that looks ahead needs all frames.
        """
        whole = list(chunks)
        if whole:
            with torch.no_grad():
                tokens = self.encode(torch.cat(whole, dim=2))
            yield tokens

    def decode_stream(self, chunks: Iterable[Tokens]) -> Iterator[Tensor]:
        """Frames (B, 3, T_i, H, W) of each chunk of latent frames; joined along time, they are the whole clip.

        Like `encode_stream`, this default collects everything first.
        """
        whole = list(chunks)
        if whole:
            with torch.no_grad():
                video = self.decode(torch.cat(whole, dim=1))
            yield video

    def training_losses(
        self, video: Float[Tensor, "b 3 T H W"]
    ) -> tuple[Float[Tensor, "b 3 T H W"], dict[str, Tensor]]:
        """The reconstruction (not clamped) and the losses of the bottleneck.

        Training adds the entry `loss`, if present, to the reconstruction losses; other entries are logged. A tokenizer
        that cannot be trained does not define this method.
        """
        raise UserError(f"{type(self).__name__} cannot be trained.")


class TokenHead(_Checked, nn.Module, ABC):
    """Distribution of one token given a hidden state, the same for every position.

    If a paradigm groups tokens into patches, a patch counts as one token here.
    """

    _required = ("loss", "sample")
    options_class: ClassVar[type[SamplingOptions]] = SamplingOptions
    """The head's own sampling options."""

    @abstractmethod
    def loss(
        self,
        hidden: Float[Tensor, "b n d"],
        target: Tensor,
    ) -> Float[Tensor, "b n"]:
        """Loss of each token (B, N). Target is (B, N) ids or (B, N, C) values."""

    @abstractmethod
    def sample(
        self,
        hidden: Float[Tensor, "b n d"],
        *,
        options: SamplingOptions,
        null_hidden: Float[Tensor, "b n d"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw one token per hidden state: (B, N) ids or (B, N, C) values."""


def _nothing() -> None:
    """Default of `Request.on_step`."""


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of `Paradigm.generate`: which clips to generate, and how."""

    condition: Condition
    """Empty for unconditional clips."""
    grid: TokenGrid
    """Size of each clip in tokens."""
    _: KW_ONLY
    batch_size: int = 1
    """Number of clips. A condition that is not empty overrides it with its own batch size."""
    prefix: Tokens | None = None
    """Latent frames to continue (B, t0, h, w[, C]) with t0 < grid.t. The result begins with them, unchanged."""
    options: SamplingOptions = SamplingOptions()
    """Sampling options. The model's other options have their defaults."""
    generator: torch.Generator | None = None
    """Source of all random numbers; by default torch's global generator."""
    on_step: Callable[[], None] = _nothing
    """Called after each evaluation of the main network, as often as `Paradigm.num_evaluations` says for it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", self.condition.batch_size or self.batch_size)

    @property
    def prefix_frames(self) -> int:
        """Number of latent frames in the prefix."""
        return 0 if self.prefix is None else self.prefix.shape[1]


class Paradigm(_Checked, nn.Module, ABC):
    """An order of factorisation and its network.

    Built as `Paradigm(spec, grid, context, size, **own options)`, where `grid` is the largest training grid. A paradigm
    defines `generate` or `stream`; the other follows from it. Class attributes declare the paradigm's abilities; tests
    and error messages use them.

    Raises UserError if `heads` lacks the tokens' type.
    """

    _required = ("loss", "num_evaluations", "heads")
    heads: ClassVar[Mapping[TokenType, type[TokenHead]]]
    """Supported token types, with the class of the head for each."""
    options_class: ClassVar[type[SamplingOptions]] = SamplingOptions
    """The paradigm's own sampling options. A model also has its head's, see `options_for`."""
    takes_prefix: ClassVar[bool] = True
    """Whether the paradigm can continue given latent frames."""
    takes_frame_conditions: ClassVar[bool] = False
    """Whether the paradigm supports conditions per frame (see `arvid.nn.frame_conditions`)."""
    is_causal: bool = True
    """Whether a latent frame depends only on earlier latent frames, and on no condition of a later one."""
    compiled_method: ClassVar[str] = "loss"
    """Method that `torch.compile` compiles as one graph; by default `loss`. It must not read values of tensors. A loss
    that does, such as a drawn number of masked tokens, calls another method with them."""
    varying_lengths: ClassVar[bool] = False
    """Whether numbers of tokens in that method vary from step to step."""
    required_frames: int = 0
    """Minimum number of prefix latent frames, for a paradigm that can only continue clips."""

    def __init__(self, spec: TokenSpec, grid: TokenGrid) -> None:
        super().__init__()
        self.head_for(spec.type)
        self.spec = spec
        self.grid = grid

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.generate is Paradigm.generate and cls.stream is Paradigm.stream:
            raise TypeError(f"{cls.__name__} must define generate or stream")

    @classmethod
    def head_for(cls, token_type: TokenType) -> type[TokenHead]:
        """The class of the head for a token type. Raises UserError, with the supported types, for other types."""
        if token_type not in cls.heads:
            raise UserError(
                f"{cls.__name__} supports {' and '.join(cls.heads)} tokens, not {token_type} ones: "
                "use another token_type or another paradigm."
            )
        return cls.heads[token_type]

    @classmethod
    def options_for(cls, token_type: TokenType) -> type[SamplingOptions]:
        """The class of a model's sampling options: the paradigm's and the head's together."""
        return compose(cls.options_class, cls.head_for(token_type).options_class)

    def own_options(self, given: SamplingOptions, kind: type[Options]) -> Options:
        """All options of this model: those given, and defaults for the others.

        `kind` is the class of the options that the caller reads (for its type only). Raises UserError for given options
        that this model does not have.
        """
        options = self.options_for(self.spec.type).of(given)
        assert isinstance(options, kind)
        return options

    @abstractmethod
    def loss(self, tokens: Tokens, condition: Condition) -> dict[str, Tensor]:
        """Training loss of a batch: `loss` (scalar), `per_token` (mean over the predicted tokens, for curves) and named
        parts."""

    def end_step(self) -> None:
        """Called after each optimiser step, for what a paradigm measures over its steps. By default nothing."""

    def generate(self, request: Request) -> Tokens:
        """Sample the tokens of the requested grid, (B, t, h, w[, C])."""
        return torch.cat(list(self.stream(request)), dim=1)

    def stream(self, request: Request) -> Iterator[Tokens]:
        """The tokens of `generate` in pieces of finished latent frames, (B, n, h, w[, C]), beginning with the prefix.

        By default one piece, for a paradigm that finishes all frames at the same time.
        """
        yield self.generate(request)

    @abstractmethod
    def num_evaluations(
        self,
        grid: TokenGrid,
        *,
        prefix_frames: int = 0,
        options: SamplingOptions = SamplingOptions(),
    ) -> dict[str, int]:
        """Evaluations of each network during `generate`, by name. `on_step` counts those of the first one."""


ParadigmFactory = Callable[[TokenSpec, TokenGrid, ContextSpec, Size], Paradigm]
"""A paradigm's class with its own options already bound."""
