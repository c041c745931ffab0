"""Decoding of next-block prediction, block by block: with a cache, or with a full forward pass for each block.

L length of the whole sequence; other letters as in `layout`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from arvid.contracts import Request, SamplingOptions, UserError
from arvid.nn.attend import BlockCausal
from arvid.nn.attention import KVCache, Transformer
from arvid.nn.cuda_graph import CudaGraph, may_capture
from arvid.nn.functional import FunctionalTransformer
from arvid.nn.heads.categorical import CategoricalHead, CategoricalSampling
from arvid.nn.positions import Rotation
from arvid.nn.static_cache import StaticKVCache, clear, marks_of
from arvid.options import option
from arvid.paradigms.next_block.layout import Layout
from arvid.ranges import at_least

if TYPE_CHECKING:
    from arvid.paradigms.next_block.paradigm import NextBlock


@dataclass(frozen=True, kw_only=True)
class NextBlockSampling(SamplingOptions):
    """Sampling options of next-block prediction."""

    last_temperature: float | None = option(None, at_least(0))
    """Discrete tokens: temperature of the last block; earlier blocks interpolate linearly. By default constant."""
    rounds: int = option(1, at_least(1))
    """Evaluations for each block; 1 as published. Each evaluation keeps the most likely tokens of the block as input of
    the next one. Needs a model that was trained with `reveal`."""
    overlap: int | None = option(None, at_least(1))
    """Clips longer than trained: generate them in windows of the trained length that begin with this number of finished
    latent frames. By default such clips are refused, as published."""
    compiled: bool = False
    """On GPUs: compile the step. This takes a minute, and makes each step shorter."""


NUM_REACHES = 4
"""Attention reads the cache up to the next of this many equal parts. There is a graph for each."""
SMALLEST_PART = 256
"""Positions. Reading fewer takes no less time than the rest of a step's attention."""


class FixedSteps:
    """Decoding steps with constant shapes, captured as CUDA graphs.

    Attention reads the filled part of the cache, rounded up (`NUM_REACHES`). The object is reused for further clips,
    because a capture takes as long as some steps, and compilation a minute.

    Args:
        transformer: the network. Its parameters must stay at their memory addresses.
        length: length L of the sequence.
        compiled: compile the step with torch.compile.
    """

    def __init__(self, transformer: Transformer, length: int, compiled: bool) -> None:
        self.transformer = transformer
        self.caches = [StaticKVCache(length) for _ in transformer.blocks]
        device = next(transformer.parameters()).device
        self.positions = torch.arange(length, device=device)
        self.part = max(SMALLEST_PART, -(-length // NUM_REACHES))
        self.step = torch.compile(self._step) if compiled else self._step
        self.graphs: dict[tuple[int, int], CudaGraph] = {}  # by positions in a step, and reach

    def show(self, visible: Bool[Tensor, "*b 1 1 l"]) -> None:
        """Mark the visible positions. Called after the first positions were fed; later ones become visible when fed."""
        marks = marks_of(visible)
        for cache in self.caches:
            cache.mark(marks)

    def __call__(
        self, x: Float[Tensor, "b n d"], start: int, rotation: Rotation | None
    ) -> Float[Tensor, "b n d"]:
        """The output at the positions from `start` on, which see each other and all visible ones before."""
        num, end = x.shape[1], start + x.shape[1]
        reach = min(-(-end // self.part) * self.part, len(self.positions))
        inputs = (x, self.positions[start:end], *(rotation or ()))
        if (num, reach) not in self.graphs:
            self.graphs[num, reach] = CudaGraph(partial(self.step, reach), *inputs)
        return self.graphs[num, reach](*inputs)

    def _step(self, reach: int, x: Tensor, slots: Tensor, *rotation: Tensor) -> Tensor:
        for cache in self.caches:
            cache.slots, cache.reach = slots, reach
        pair = (rotation[0], rotation[1]) if rotation else None
        out: Tensor = self.transformer(x, None, self.caches, rotation=pair)
        return out


IDLE: WeakKeyDictionary[nn.Module, tuple[object, FixedSteps]] = WeakKeyDictionary()
"""Steps of each network that no decoder uses now, with their kind (`Decoder._kind`)."""


def has_graphs(context: Tensor) -> bool:
    """Whether steps are captured as CUDA graphs."""
    return context.is_cuda and may_capture()


class Decoder:
    """Feeds new parts of the sequence to the network, and returns the hidden states that predict the next tokens.

    Args:
        model: the network.
        context: (B, S, D). With guidance, the second half of the batch is the negative context.
        padding: True where the context's first tokens are padding.
        layout: layout of the clip.
        options: `use_cache` and `compiled` are used here.
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
                "Steps can be compiled only on GPUs, with a cache and without autocast: leave out compiled."
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
        self.fed = 0  # positions that have been fed
        self.length = len(model.blocks)  # L
        self.visible = None if padding is None else ~_padded(padding, self.length)  # (B, 1, 1, L)
        self.hints: Tensor | None = None  # (B, L, D); 0 at positions without a hint
        on_cpu = context.device.type == "cpu" and not model.training
        transformer = model.transformer
        self.step: Transformer | FunctionalTransformer = (
            FunctionalTransformer(transformer) if on_cpu else transformer
        )
        self.fixed: FixedSteps | None = None
        self.caches: list[KVCache] | None = None
        if options.use_cache and has_graphs(context):
            self.fixed = self._take_fixed()
            self.caches = [*self.fixed.caches]
        elif options.use_cache:
            self.caches = model.transformer.new_caches(self.length)

    def _take_fixed(self) -> FixedSteps:
        """The idle steps of this network, if their kind fits; otherwise new ones.

        They leave `IDLE` while a decoder uses them, so two decoders never share a cache.
        """
        key, idle = self._kind(), IDLE.pop(self.model, None)
        if idle is not None and idle[0] == key:
            clear(idle[1].caches)
            return idle[1]
        return FixedSteps(self.model.transformer, self.length, self.options.compiled)

    def close(self) -> None:
        """Return the captured steps to `IDLE`, for the next clip."""
        if self.fixed is not None:
            IDLE[self.model] = (self._kind(), self.fixed)
        self.fixed = self.caches = None

    def _kind(self) -> object:
        """Everything that captured steps depend on. (Outside inference mode, tensors made in it cannot be written.)"""
        weights = [p.data_ptr() for p in self.model.transformer.parameters()]
        modes = self.options.compiled, self.model.training, torch.is_inference_mode_enabled()
        return len(self.context), self.context.dtype, modes, weights

    def hidden(
        self, tokens: Tensor, known: int, hint: Float[Tensor, "b p d"] | None = None
    ) -> Float[Tensor, "b p d"]:
        """Normed hidden states that predict the tokens after the first `known` ones.

        Args:
            tokens: (b, N[, C]); only the first `known` are read. If b is a part of B, it is repeated.
            known: number of known tokens.
            hint: added to the inputs at the predicting positions. A second call with the same `known` and another hint
                feeds these positions again.
        """
        # The last `count` positions of a sequence of length `end` predict the next `count` tokens.
        end, count = self.layout.length(known), self.layout.num_predicted(known)
        # Feed all positions that are not cached. In a second call, `fed` is already `end`: feed the last `count`
        # again. Without a cache, feed everything from position 0.
        start = min(self.fed, end - count) if self.caches else 0
        x = self.model.embed_sequence(self.context, tokens, start, end, self.frame_conditions)
        if hint is not None:
            # Kept for all positions: without a cache, later calls feed these positions again.
            if self.hints is None:
                self.hints = x.new_zeros(len(x), self.length, x.shape[-1])
            self.hints[:, end - count : end] = hint
        if self.hints is not None:
            x = x + self.hints[:, start:end]
        rotation = self.model.rotation(start, end)
        if start == 0:
            # Several blocks at once (context, prefix): needs the block-causal mask.
            x = self.model.transformer(x, self._mask(end), self._rewound(0), rotation=rotation)
            if self.fixed is not None:
                filled = (self.fixed.positions < end).view(1, 1, 1, -1)
                self.fixed.show(filled if self.visible is None else self.visible & filled)
        elif self.fixed is not None:
            # One block that sees all filled positions, by a CUDA graph.
            x = self.fixed(x, start, rotation)
        else:
            # One block that sees everything cached, so only padding needs a mask.
            visible = None if self.visible is None else self.visible[..., :end]
            caches = self._rewound(start)
            assert caches is not None  # without a cache, start is 0
            x = self.step(x, visible, caches, rotation=rotation)
        self.fed = end
        hidden: Tensor = self.model.norm(x[:, -count:])
        return hidden

    def _mask(self, end: int) -> BlockCausal | Tensor:
        """Mask of all positions up to `end`. Dense, because FlexAttention would be compiled for this length only."""
        mask = self.model.mask(end).with_padding(self.padding)
        return mask.dense() if mask.first is None and not self.options.compiled else mask

    def _rewound(self, start: int) -> list[KVCache] | None:
        """The caches, set back to the state after `start` positions."""
        for cache in self.caches or []:
            cache.rewind(start)
        return self.caches


def _padded(padding: Tensor, length: int) -> Tensor:
    """(B, P) -> (B, 1, 1, L), filled with False on the right."""
    return torch.nn.functional.pad(padding, (0, length - padding.shape[1]))[:, None, None]


def sample_block(
    model: NextBlock,
    decoder: Decoder,
    tokens: Tensor,
    known: int,
    options: NextBlockSampling,
    request: Request,
) -> Tensor:
    """Sample the tokens (B, P[, C]) after the first `known` tokens of (B, N[, C]).

    With several rounds, each round samples the open tokens and keeps the most likely ones as input of later rounds. The
    share of kept tokens grows linearly. Raises UserError for a model that was not trained with `reveal`.
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
            "Several rounds for a block need a model that was trained to see a part of it (reveal: true)."
        )
    block = tokens[:, known : known + count].clone()
    kept = torch.zeros_like(block, dtype=torch.bool)
    for i in range(options.rounds):
        given, null = _halves(decoder.hidden(tokens, known, hint), len(tokens))
        drawn, confidence = head.sample_with_confidence(
            given, options=options, null_hidden=null, generator=request.generator
        )
        block = torch.where(kept, block, drawn)
        request.on_step()
        if i == options.rounds - 1:
            break
        num = -(-count * (i + 1) // options.rounds)  # rounded up
        # Infinite confidence: tokens that are kept once stay kept.
        most_likely = confidence.masked_fill(kept, torch.inf).topk(num, dim=1).indices
        kept = torch.zeros_like(kept).scatter(1, most_likely, True)
        hint = model.hint(block, kept).repeat(len(decoder.context) // len(tokens), 1, 1)
    return block


def _tempered(options: NextBlockSampling, known: int, layout: Layout) -> NextBlockSampling:
    """The options with the temperature of the block after the first `known` tokens."""
    if options.last_temperature is None or not isinstance(options, CategoricalSampling):
        return options
    last = layout.num_tokens - layout.block_len
    share = known / last if last else 0.0
    temperature = options.temperature + share * (options.last_temperature - options.temperature)
    return options.replace(temperature=max(temperature, 0.0))


def _halves(hidden: Tensor, batch: int) -> tuple[Tensor, Tensor | None]:
    """The conditional half of the hidden states and, with guidance, the negative half."""
    return hidden[:batch], hidden[batch:] if len(hidden) > batch else None
