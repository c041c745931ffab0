"""What the parts of arvid promise each other.

A video tokenizer turns frames into a grid of tokens; a paradigm factorises that grid autoregressively;
a token head models one token given a hidden state. Order (paradigm) and token type (head) are independent,
so every paradigm that comes with arvid takes both types of tokens. Nothing in this file knows a concrete part.

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
    UserError as UserError,  # also from here: all that implement a contract raise it
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
        return self.t * self.h * self.w

    @property
    def tokens_per_frame(self) -> int:
        return self.h * self.w

    def with_frames(self, t: int) -> TokenGrid:
        """The same grid with another number of latent frames."""
        return dataclasses.replace(self, t=t)


@dataclass(frozen=True)
class TokenSpec:
    """What a tokenizer emits.

    `size` is the vocabulary size of discrete tokens or the channels of continuous ones; `strides` are the
    (frames, rows, columns) of pixels behind one token; `causal` says that encoding a prefix of the frames
    gives the prefix of the tokens. With `exact_prefix` false it gives them only nearly, as with published ones
    whose norms see several frames at once: what remains of `causal` is that a clip has 1 + n·F_T frames.

    `codes` are the vectors behind the ids, if a discrete tokenizer shows them. They are neither compared nor stored.
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
        """Token grid of a clip. Raises UserError if the clip cannot be tokenized without a remainder.

        `later_chunk` says that the frames go on from others of the same clip, so there is no first frame among
        them that causal tokenizers encode alone.
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
            raise UserError(f"{num_frames} frames is not a multiple of the temporal stride {ft}.")
        if height % fh or width % fw:
            raise UserError(
                f"{height}x{width} pixels do not fit this tokenizer: "
                f"height must be a multiple of {fh} and width of {fw}."
            )
        frames = 1 + (num_frames - 1) // ft if first_alone else num_frames // ft
        return TokenGrid(frames, height // fh, width // fw)

    def num_frames(self, grid: TokenGrid) -> int:
        """Frames of the clip behind a grid."""
        return 1 + (grid.t - 1) * self.strides[0] if self.causal else grid.t * self.strides[0]

    def chunk_frames(self, num_frames: int, latent_frames: int) -> list[int]:
        """Frames of each chunk when a clip is streamed `latent_frames` at a time; the last chunk may be shorter.

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
    """What a batch of clips is generated from. Everything may be absent; what is present shares the batch size."""

    text: Float[Tensor, "b s d"] | Int[Tensor, "b s"] | None = None
    """Features, or ids of words where `ContextSpec.text_vocab` says so."""
    text_mask: Bool[Tensor, "b s"] | None = None
    """True where `text` holds a word, False where it is padding."""
    values: dict[str, Tensor] = field(default_factory=dict)
    """Values of the other conditions by name (see `arvid.conditions`): (B,) or (B, K) for each clip, (B, t, F[, K]) for
    the F frames behind each latent frame."""
    negative_text: Float[Tensor, "b s d"] | None = None
    """Negative prompt of classifier-free guidance, in the place of the null condition."""
    negative_text_mask: Bool[Tensor, "b s"] | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> Condition:
        """Apply `fn` to every tensor that is present."""
        mapped = {name: fn(value) for name, value in self._texts().items()}
        return Condition(**mapped, values={name: fn(value) for name, value in self.values.items()})

    def _texts(self) -> dict[str, Tensor]:
        """The present tensors of the text by field."""
        names = ("text", "text_mask", "negative_text", "negative_text_mask")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def to(self, device: torch.device | str) -> Condition:
        return self.map(lambda x: x.to(device))

    @property
    def batch_size(self) -> int | None:
        """Batch size, or None for an empty (unconditional) condition."""
        present = (*self._texts().values(), *self.values.values())
        return present[0].shape[0] if present else None


@dataclass(frozen=True)
class ContextSpec:
    """Which conditions a model is built for: what its context embedder needs to know."""

    text_dim: int | None = None
    """Width of the text's features; 0 where they are ids of words, for a model that embeds them itself."""
    text_len: int = 0
    text_vocab: int | None = None
    """How many ids of words there are, where the text's features are ids."""
    conditions: Mapping[str, int] = field(default_factory=dict)
    """Conditions with a value per clip: name -> number of class ids or of a vector's components (1 for a number)."""
    frame_conditions: Mapping[str, int] = field(default_factory=dict)
    """The same of conditions with a value per frame."""
    frames_per_latent: int = 1
    """Frames behind a latent frame: the tokenizer's temporal stride."""

    @property
    def num_tokens(self) -> int:
        """Context tokens that the conditions take up: those of the text, then one for each condition per clip."""
        text = self.text_len if self.text_dim is not None else 0
        return text + len(self.conditions)

    @property
    def is_empty(self) -> bool:
        """Whether there is no condition at all."""
        return not (self.num_tokens or self.frame_conditions)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of a paradigm's transformer, equal for all rows of a comparison.

    Raises UserError for numbers below 1 (`head_depth` may be 0), and where the heads do not divide the width.
    """

    name: str = "custom"
    """What tables call it."""
    dim: int
    depth: int
    num_heads: int
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
    """One example of a dataset: uint8 frames (T, H, W, 3) in RGB and what is known of them."""

    video: np.ndarray
    caption: str = ""
    label: int | None = None
    motion: float | None = None
    fps: float | None = None
    """Frames per second."""
    name: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """Values of further conditions by name (see `arvid.conditions`): of the clip, or of each frame (T, ...)."""


class _Checked:
    """Subclasses are checked when they are defined: a concrete one must have every promised attribute."""

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
    """A finite, indexable set of clips; item i is the same clip every time it is asked for."""

    _required = ("__len__", "__getitem__", "fingerprint")
    classes: tuple[str, ...] = ()
    """Names of the class labels, or empty."""
    value_names: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Names of what the values of further conditions mean, by condition: of each class id, or of each component of a
    vector (see `arvid.conditions`)."""
    has_captions: bool = True
    """False where it is known that no clip has a caption."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Clip: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of what the clips depend on (files and options, not where they lie): keys the token cache."""

    def earlier_fingerprint(self) -> str | None:
        """The fingerprint that an earlier version of arvid gave to these clips, if it was another one.

        Runs and records of then are recognised by it.
        """
        return None

    def __iter__(self) -> Iterator[Clip]:
        return (self[i] for i in range(len(self)))


class VideoTokenizer(_Checked, nn.Module, ABC):
    """Turns video (B, 3, T, H, W) in [-1, 1] into tokens and back."""

    _required = ("encode", "decode", "spec")

    @property
    @abstractmethod
    def spec(self) -> TokenSpec: ...

    @abstractmethod
    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Tokens: ...

    def encode_posterior(self, video: Float[Tensor, "b 3 T H W"]) -> tuple[Tokens, Tokens]:
        """Tokens as `encode` gives them, and the standard deviation of the Gaussians that they are the means of.

        Raises UserError where the encoder is sure of its tokens: ids, and latents without a distribution.
        """
        raise UserError(
            f"{type(self).__name__} has no posterior to draw from: leave data.posterior off."
        )

    @abstractmethod
    def decode(self, tokens: Tokens) -> Float[Tensor, "b 3 T H W"]:
        """Video in [-1, 1] (clamped)."""

    def check_grid(self, grid: TokenGrid) -> None:
        """Raises UserError for a grid that `decode` cannot take, so that nobody generates it in vain; any will do
        unless a tokenizer says otherwise."""

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tokens]:
        """Tokens of each chunk (B, 3, T_i, H, W) of a long clip; joined along time they are those of the whole clip.

        `TokenSpec.chunk_frames` says how long the chunks may be. Takes no gradients. A tokenizer that looks ahead
        cannot give tokens before the end: this default takes the whole clip at once, whatever its length.
        """
        whole = list(chunks)
        if whole:
            with torch.no_grad():
                tokens = self.encode(torch.cat(whole, dim=2))
            yield tokens

    def decode_stream(self, chunks: Iterable[Tokens]) -> Iterator[Tensor]:
        """Frames (B, 3, T_i, H, W) of each chunk of latent frames; joined along time they are the whole clip.

        As for `encode_stream`, this default decodes everything at once.
        """
        whole = list(chunks)
        if whole:
            with torch.no_grad():
                video = self.decode(torch.cat(whole, dim=1))
            yield video

    def training_losses(
        self, video: Float[Tensor, "b 3 T H W"]
    ) -> tuple[Float[Tensor, "b 3 T H W"], dict[str, Tensor]]:
        """The reconstruction, not clamped, and the losses of the bottleneck.

        Training compares the reconstruction with the video and adds to that the key `loss` of the losses, if there is
        one; their other keys are named parts to be logged. A tokenizer that cannot be trained does not define this.
        """
        raise UserError(f"{type(self).__name__} cannot be trained.")


class TokenHead(_Checked, nn.Module, ABC):
    """Distribution over one token given a hidden state, the same for every position.

    `patch` consecutive vectors of a token (see the paradigms) count as one token here.
    """

    _required = ("loss", "sample")
    options_class: ClassVar[type[SamplingOptions]] = SamplingOptions
    """The head's own sampling options."""

    @abstractmethod
    def loss(
        self,
        hidden: Float[Tensor, "b n d"],
        target: Tensor,
        weight: Float[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n"]:
        """Loss of each token, times its weight: (B, N). Target is (B, N) ids or (B, N, C) values."""

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
    """What is called after an evaluation, unless a request says otherwise."""


@dataclass(frozen=True, eq=False)
class Request:
    """What a paradigm is asked to generate."""

    condition: Condition
    """Empty for unconditional clips."""
    grid: TokenGrid
    """Size of each clip in tokens."""
    _: KW_ONLY
    batch_size: int = 1
    """Number of clips. If there is a condition, it is the condition's batch size, whatever is given."""
    prefix: Tokens | None = None
    """Given latent frames (B, t0, h, w[, C]) with t0 < grid.t, which come back unchanged."""
    options: SamplingOptions = SamplingOptions()
    """How tokens are drawn. Options of the model that they lack are at their defaults."""
    generator: torch.Generator | None = None
    """Of all random numbers; by default torch's global one."""
    on_step: Callable[[], None] = _nothing
    """Called after each evaluation of the main network, as often as `Paradigm.num_evaluations` says for it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", self.condition.batch_size or self.batch_size)

    @property
    def prefix_frames(self) -> int:
        """Number of given latent frames."""
        return 0 if self.prefix is None else self.prefix.shape[1]


class Paradigm(_Checked, nn.Module, ABC):
    """An order of factorisation and the network that follows it.

    Built as `Paradigm(spec, grid, context, size, **own options)`, where `grid` is the largest grid it is trained on.
    Of `generate` and `stream` a paradigm defines one: the other is made from it. What a paradigm can do is declared by
    the attributes of the class, and tests and error messages follow them.

    Raises UserError for tokens of a type that `heads` does not have.
    """

    _required = ("loss", "num_evaluations", "heads")
    heads: ClassVar[Mapping[TokenType, type[TokenHead]]]
    """The token types that the paradigm supports, and the class of the head for each."""
    options_class: ClassVar[type[SamplingOptions]] = SamplingOptions
    """The paradigm's own sampling options. A model has those of its head too, see `options_for`."""
    takes_prefix: ClassVar[bool] = True
    """Whether the paradigm can continue given latent frames."""
    takes_frame_conditions: ClassVar[bool] = False
    """Whether the paradigm follows conditions per frame (see `arvid.nn.frame_conditions`)."""
    required_frames: int = 0
    """Latent frames that have to be given, for a paradigm that can only continue others."""

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
        """The class of the head for a token type. Raises UserError naming those that the paradigm supports."""
        if token_type not in cls.heads:
            raise UserError(
                f"{cls.__name__} supports {' and '.join(cls.heads)} tokens, not {token_type} ones: "
                "use another token_type or another paradigm."
            )
        return cls.heads[token_type]

    @classmethod
    def options_for(cls, token_type: TokenType) -> type[SamplingOptions]:
        """The sampling options of a model: the paradigm's and its head's."""
        return compose(cls.options_class, cls.head_for(token_type).options_class)

    def own_options(self, given: SamplingOptions, kind: type[Options]) -> Options:
        """All options of this model, as far as they are given, and else their defaults.

        `kind` is one of the classes that they consist of: what the caller reads. Raises UserError for options that are
        given and that this model does not have.
        """
        options = self.options_for(self.spec.type).of(given)
        assert isinstance(options, kind)
        return options

    @abstractmethod
    def loss(self, tokens: Tokens, condition: Condition) -> dict[str, Tensor]:
        """Training loss of a batch: `loss` (scalar), `per_token` (mean over the tokens predicted, which curves
        show) and named parts."""

    def generate(self, request: Request) -> Tokens:
        """Draw the tokens of the requested grid (B, t, h, w[, C])."""
        return torch.cat(list(self.stream(request)), dim=1)

    def stream(self, request: Request) -> Iterator[Tokens]:
        """What `generate` draws, in pieces (B, n, h, w[, C]) of latent frames as they are finished, given ones first.

        By default everything in one piece, for a paradigm that finishes all frames at once.
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
        """Evaluations of each network during `generate`, by name; the first one is the one `on_step` counts."""


ParadigmFactory = Callable[[TokenSpec, TokenGrid, ContextSpec, Size], Paradigm]
"""A paradigm's class with its own options bound."""
