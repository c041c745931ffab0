"""Hidden states of the next block, step by step: with a cache, or anew from everything.

L length of the whole sequence; other letters as in `layout`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from arvid.contracts import Request, SamplingOptions, UserError
from arvid.nn.attend import BlockCausal
from arvid.nn.attention import KVCache, Transformer
from arvid.nn.cuda_graph import CudaGraph
from arvid.nn.functional import FunctionalTransformer
from arvid.nn.heads.categorical import CategoricalHead, CategoricalSampling
from arvid.nn.positions import Rotation
from arvid.options import option
from arvid.paradigms.next_block.layout import Layout
from arvid.ranges import at_least

if TYPE_CHECKING:
    from arvid.paradigms.next_block.paradigm import NextBlock


@dataclass(frozen=True, kw_only=True)
class NextBlockSampling(SamplingOptions):
    """Sampling options of next-block prediction."""

    last_temperature: float | None = option(None, at_least(0))
    """Discrete tokens: temperature of the clip's last block. It changes linearly from that of the first block. By
    default all blocks have the same temperature."""
    rounds: int = option(1, at_least(1))
    """Evaluations for each block; 1 as published. After each one the likeliest tokens of the block stay, and the next
    one sees them. Needs a model that was trained to `reveal`."""
    compiled: bool = False
    """On GPUs: compile the step. That takes a minute, and makes each step shorter."""


class FixedSteps:
    """Steps whose shapes do not depend on how far they are, captured as CUDA graphs.

    All of the cache is read, and a mask hides what is not filled. Outlives a clip: capturing takes as long as some
    steps, and compiling a minute.

    Args:
        transformer: the network, whose parameters must stay where they are.
        length: L.
        compiled: whether torch.compile fuses what it can.
    """

    def __init__(self, transformer: Transformer, length: int, compiled: bool) -> None:
        self.transformer = transformer
        self.caches = transformer.new_caches(length)
        self.step = torch.compile(self._step) if compiled else self._step
        self.graphs: dict[int, CudaGraph] = {}  # by number of places

    def __call__(
        self,
        x: Float[Tensor, "b n d"],
        slots: Int[Tensor, " n"],
        shown: Bool[Tensor, "*b 1 1 l"],
        rotation: Rotation | None,
    ) -> Float[Tensor, "b n d"]:
        """The output at the places that `slots` numbers; `shown` are the filled ones, these included."""
        inputs = (x, slots, shown, *(rotation or ()))
        if x.shape[1] not in self.graphs:
            self.graphs[x.shape[1]] = CudaGraph(self.step, *inputs)
        return self.graphs[x.shape[1]](*inputs)

    def _step(self, x: Tensor, slots: Tensor, shown: Tensor, *rotation: Tensor) -> Tensor:
        for cache in self.caches:
            cache.slots = slots
        codes = (rotation[0], rotation[1]) if rotation else None
        out: Tensor = self.transformer(x, shown, self.caches, rotation=codes)
        return out


IDLE: WeakKeyDictionary[nn.Module, tuple[object, FixedSteps]] = WeakKeyDictionary()
"""Those of each network's last clip, for the next one of the same kind."""


def has_graphs(context: Tensor) -> bool:
    """Whether steps are captured: on CPUs there is nothing to gain, and autocast frees what it has cast."""
    return context.is_cuda and not torch.is_autocast_enabled("cuda")


class Decoder:
    """Feeds each part of the sequence once it is known and gives the hidden states that predict what follows.

    Args:
        model: the network.
        context: (B, S, D); the null half of guidance counts as further clips.
        padding: where the context's first tokens are padding.
        layout: of the clip.
        options: whether there is a cache, and whether the step is compiled.
        frame_conditions: embedded conditions per frame (B, t, D).
    """

    def __init__(
        self,
        model: NextBlock,
        context: Float[Tensor, "b s d"],
        padding: Bool[Tensor, "b p"] | None,
        layout: Layout,
        options: NextBlockSampling,
        frame_conditions: Float[Tensor, "b t d"] | None = None,
    ) -> None:
        if options.compiled and not (has_graphs(context) and options.use_cache):
            raise UserError(
                "Steps are compiled on GPUs only, with a cache and without autocast: leave out compiled."
            )
        self.model = model
        self.head = model.head
        if isinstance(model.head, CategoricalHead):
            self.head = model.head.packed()
        self.context = context
        self.frame_conditions = frame_conditions
        self.padding = padding
        self.layout = layout
        self.options = options
        self.fed = 0
        self.length = len(model.blocks)  # L
        self.shown = None if padding is None else ~_padded(padding, self.length)  # (B, 1, 1, L)
        self.hints: Tensor | None = None  # (B, L, D) of the places that were fed with one
        on_cpu = context.device.type == "cpu" and not model.training
        transformer = model.transformer
        self.step: Transformer | FunctionalTransformer = (
            FunctionalTransformer(transformer) if on_cpu else transformer
        )
        self.fixed: FixedSteps | None = None
        self.caches: list[KVCache] | None = None
        if options.use_cache and has_graphs(context):
            self.fixed = self._take_fixed()
            self.caches = self.fixed.caches
        elif options.use_cache:
            self.caches = model.transformer.new_caches(self.length)

    def _take_fixed(self) -> FixedSteps:
        """The last clip's, unless it was of another kind or another decoder is at work with them."""
        key, known = self._kind(), IDLE.pop(self.model, None)
        if known is not None and known[0] == key:
            return known[1]
        return FixedSteps(self.model.transformer, self.length, self.options.compiled)

    def close(self) -> None:
        """Leaves to the next clip what can be used again."""
        if self.fixed is not None:
            IDLE[self.model] = (self._kind(), self.fixed)
        self.fixed = self.caches = None

    def _kind(self) -> object:
        """What captured steps depend on. Memory made under inference mode may not be written to outside of it."""
        weights = [p.data_ptr() for p in self.model.transformer.parameters()]
        modes = self.options.compiled, self.model.training, torch.is_inference_mode_enabled()
        return len(self.context), self.context.dtype, self.shown is None, modes, weights

    def hidden(
        self, tokens: Tensor, known: int, hint: Float[Tensor, "b p d"] | None = None
    ) -> Float[Tensor, "b p d"]:
        """Normed hidden states at the places that predict the tokens after the `known` ones.

        Args:
            tokens: (b, N[, C]), of which the first `known` are read; b may be a part of B that is repeated.
            known: how many there are.
            hint: what is added to the inputs at these places. Asked again for the same tokens, with another hint, the
                places are fed again.
        """
        end, count = self.layout.length(known), self.layout.num_predicted(known)
        start = min(self.fed, end - count) if self.caches else 0
        x = self.model.embed_sequence(self.context, tokens, start, end, self.frame_conditions)
        if hint is not None:
            if self.hints is None:
                self.hints = x.new_zeros(len(x), self.length, x.shape[-1])
            self.hints[:, end - count : end] = hint
        if self.hints is not None:
            x = x + self.hints[:, start:end]
        rotation = self.model.rotation(start, end)
        if start == 0:
            x = self.model.transformer(x, self._mask(end), self._rewound(0), rotation=rotation)
        elif self.fixed is not None:
            slots = torch.arange(start, end, device=x.device)
            x = self.fixed(x, slots, self._filled(end, x.device), rotation)
        else:
            shown = None if self.shown is None else self.shown[..., :end]
            caches = self._rewound(start)
            assert caches is not None  # without any all is fed anew, from place 0
            x = self.step(x, shown, caches, rotation=rotation)
        self.fed = end
        hidden: Tensor = self.model.norm(x[:, -count:])
        return hidden

    def _mask(self, end: int) -> BlockCausal | Tensor:
        """Of all places so far. FlexAttention would be compiled for their number, for one use."""
        mask = self.model.mask(end).with_padding(self.padding)
        return mask.dense() if mask.first is None and not self.options.compiled else mask

    def _rewound(self, start: int) -> list[KVCache] | None:
        """The caches as they were when `start` places had been fed."""
        for cache in self.caches or []:
            cache.length, cache.slots = start, None
        return self.caches

    def _filled(self, end: int, device: torch.device) -> Bool[Tensor, "*b 1 1 l"]:
        filled = (torch.arange(self.length, device=device) < end).view(1, 1, 1, -1)
        return filled if self.shown is None else self.shown & filled


def _padded(padding: Tensor, length: int) -> Tensor:
    """(B, P) -> (B, 1, 1, L), False behind."""
    return torch.nn.functional.pad(padding, (0, length - padding.shape[1]))[:, None, None]


def draw_block(
    model: NextBlock,
    decoder: Decoder,
    tokens: Tensor,
    known: int,
    options: NextBlockSampling,
    request: Request,
) -> Tensor:
    """The tokens (B, P[, C]) after the `known` ones of (B, N[, C]).

    With several rounds, each draws what is still open, and the likeliest of it stay: their share grows evenly from
    round to round, and later rounds are shown them. Raises UserError for a model that was not trained to see them.
    """
    options = _tempered(options, known, decoder.layout)
    count = decoder.layout.num_predicted(known)
    if options.rounds == 1 or count == 1:
        given, null = _halves(decoder.hidden(tokens, known), len(tokens))
        drawn = decoder.head.sample(
            given, options=options, null_hidden=null, generator=request.generator
        )
        request.on_step()
        return drawn
    head, hint = decoder.head, None
    if model.reveal is None or not isinstance(head, CategoricalHead):
        raise UserError(
            "Several rounds for a block need a model that was trained to see a part of it: reveal."
        )
    block = tokens[:, known : known + count].clone()
    stays = torch.zeros_like(block, dtype=torch.bool)
    for i in range(options.rounds):
        given, null = _halves(decoder.hidden(tokens, known, hint), len(tokens))
        drawn, confidence = head.sample_with_confidence(
            given, options=options, null_hidden=null, generator=request.generator
        )
        block = torch.where(stays, block, drawn)
        request.on_step()
        if i == options.rounds - 1:
            break
        num = -(-count * (i + 1) // options.rounds)
        likeliest = confidence.masked_fill(stays, torch.inf).topk(num, dim=1).indices
        stays = torch.zeros_like(stays).scatter(1, likeliest, True)
        hint = model.hint(block, stays).repeat(len(decoder.context) // len(tokens), 1, 1)
    return block


def _tempered(options: NextBlockSampling, known: int, layout: Layout) -> NextBlockSampling:
    """The options with the temperature of the block after the `known` tokens."""
    if options.last_temperature is None or not isinstance(options, CategoricalSampling):
        return options
    last = layout.num_tokens - layout.block_len
    share = known / last if last else 0.0
    temperature = options.temperature + share * (options.last_temperature - options.temperature)
    return options.replace(temperature=max(temperature, 0.0))


def _halves(hidden: Tensor, batch: int) -> tuple[Tensor, Tensor | None]:
    """The given and, with guidance, the null half of the hidden states."""
    return hidden[:batch], hidden[batch:] if len(hidden) > batch else None
