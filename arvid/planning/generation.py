"""Costs of sampling one clip, counted on fake tensors: FLOPs, network evaluations and the KV cache.

A large model needs hundreds of thousands of operations for a clip. Two exact shortcuts make counting quick. The head
runs on one and on two tokens only, because its FLOPs are linear in the number of tokens. The network runs at two small
depths only, because FLOPs and cache are linear in the depth.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from arvid.contracts import Request, TokenHead
from arvid.flops import flop_counter
from arvid.nn.attention import KVCache
from arvid.nn.heads.categorical import CategoricalHead
from arvid.nn.heads.diffusion import DiffusionHead
from arvid.planning.fake import FakeNetworks
from arvid.planning.networks import example_condition, example_tokens
from arvid.sampling.sample import clip_grid
from arvid.training.generator_module import GeneratorModule

PERIODS = (1, 2, 3, 6)
"""Differences between the two depths, in the order of trial. A part with half of the blocks needs more than 1."""


@dataclass(frozen=True)
class GenerationCost:
    """Costs of sampling one clip."""

    flops: float
    """FLOPs of all tokens, without decoding."""
    decoding_flops: float
    evaluations: dict[str, int]
    """Evaluations of each network, by name."""
    cache: float
    """Bytes of the KV cache, without the up to 8 numbers that next-block prediction adds to each head on GPUs (see
    `StaticKVCache`)."""


def generation_cost(
    build: Callable[[int], GeneratorModule], depth: int, fakes: FakeNetworks
) -> GenerationCost:
    """The costs of one clip of the trained length, with the model's own sampling options.

    Args:
        build: makes the model with a given number of blocks.
        depth: number of blocks of the model.
        fakes: the fake tensors on which it runs.
    """
    model = build(depth)
    pair = _depths(build, depth, model)
    if pair is None:
        flops, cache = _tokens_cost(model, fakes)
    else:
        first, second = (_tokens_cost(build(blocks), fakes) for blocks in pair)
        steps = (depth - pair[0]) / (pair[1] - pair[0])
        flops, cache = (a + steps * (b - a) for a, b in zip(first, second, strict=True))
    grid = clip_grid(model)
    evaluations = model.paradigm.num_evaluations(
        grid, prefix_frames=model.paradigm.required_frames, options=model.sampling
    )
    return GenerationCost(flops, _decoding_flops(model, fakes), evaluations, cache)


def _depths(
    build: Callable[[int], GeneratorModule], depth: int, model: GeneratorModule
) -> tuple[int, int] | None:
    """The smallest two depths from which all stacks of blocks grow linearly to the model's; None if there are none."""
    target = _stacks(model)
    for period in PERIODS:
        small = depth % period or period
        if small + period >= depth:
            break
        first, second = (_stacks(build(blocks)) for blocks in (small, small + period))
        if not len(first) == len(second) == len(target):
            continue
        steps = (depth - small) // period
        grown = [a + steps * (b - a) for a, b in zip(first, second, strict=True)]
        if all(first) and grown == target:
            return small, small + period
    return None


def _stacks(model: GeneratorModule) -> list[int]:
    """Number of blocks of each stack of the network. Those of the head do not depend on the depth."""
    return [len(m) for m in model.paradigm.modules() if isinstance(m, nn.ModuleList)]


def _decoding_flops(model: GeneratorModule, fakes: FakeNetworks) -> float:
    with torch.no_grad(), fakes.running(autocast=False), flop_counter() as counter:
        model.tokenizer.decode(example_tokens(model, 1, clip_grid(model).t))
    return float(counter.get_total_flops())


def encoding_flops(model: GeneratorModule, fakes: FakeNetworks) -> float:
    """FLOPs of encoding one clip."""
    frames, height, width = model.clip_shape
    with torch.no_grad(), fakes.running(autocast=False), flop_counter() as counter:
        model.tokenizer.encode(torch.zeros(1, 3, frames, height, width))
    return float(counter.get_total_flops())


def _tokens_cost(model: GeneratorModule, fakes: FakeNetworks) -> tuple[float, float]:
    """FLOPs of all tokens of one clip, and bytes of the KV cache."""
    model.requires_grad_(False)
    paradigm, options = model.paradigm.eval(), model.sampling
    watch, given_head = _Caches(), getattr(paradigm, "head", None)
    with torch.no_grad(), fakes.running(autocast=False):
        head = _HeadStandIn(given_head)
        prefix = None
        if paradigm.required_frames:
            prefix = example_tokens(model, 1, paradigm.required_frames)
        request = Request(
            example_condition(model, 1),
            clip_grid(model),
            prefix=prefix,
            options=options,
            on_step=watch.look,
        )
        with flop_counter() as counter, _ZeroIds():
            paradigm.generate(request)
    return float(counter.get_total_flops()) + head.flops, float(watch.num_bytes)


class _ZeroIds(TorchFunctionMode):
    """Makes `Tensor.aminmax` return zeros. Models check the range of given ids, but fake tensors have no values."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (0, 0) if func is Tensor.aminmax else func(*args, **(kwargs or {}))


class _Caches:
    """Finds the KV caches that exist after the first evaluations. A cache has its final size from the start."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._looks = 0
        self._others = _all_caches()  # of other models

    def look(self) -> None:
        self._looks += 1
        if self._looks <= 2:  # some networks make their caches in the second evaluation
            new = _all_caches() - self._others
            self.num_bytes = max(self.num_bytes, sum(cache.num_bytes for cache in new))


def _all_caches() -> set[KVCache]:
    return {x for x in gc.get_objects() if type(x) is KVCache}


class _HeadStandIn:
    """Replaces the sampling methods of a head: the new ones return zeros, and add up the FLOPs of the real ones.

    The real ones cannot run: they read values of logits, which fake tensors do not have.
    """

    def __init__(self, head: TokenHead | None) -> None:
        self.flops = 0.0
        self.head = head
        self._known: dict[int, tuple[float, float]] = {}
        if isinstance(head, CategoricalHead):
            head.sample = self._ids  # type: ignore[method-assign]
            head.sample_with_confidence = self._ids_and_confidence  # type: ignore[method-assign]
            head.packed = lambda: head  # type: ignore[method-assign]
        elif isinstance(head, DiffusionHead):
            self._sample = head.sample
            head.sample = self._values  # type: ignore[method-assign]

    def _ids(self, hidden: Tensor, *, null_hidden: Tensor | None = None, **_: Any) -> Tensor:
        assert isinstance(self.head, CategoricalHead)
        passes = 1 if null_hidden is None else 2
        rows = passes * hidden[..., 0].numel()
        self.flops += 2 * rows * hidden.shape[-1] * self.head.vocab_size
        return torch.zeros(hidden.shape[:2], dtype=torch.long)

    def _ids_and_confidence(self, hidden: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        return self._ids(hidden, **given), torch.zeros(hidden.shape[:2])

    def _values(self, hidden: Tensor, **given: Any) -> Tensor:
        assert isinstance(self.head, DiffusionHead)
        others = {k: v for k, v in given.items() if isinstance(v, Tensor)}
        if len(others) not in self._known:
            one, two = (self._cost(hidden, others, given, n) for n in (1, 2))
            self._known[len(others)] = one, two - one
        first, further = self._known[len(others)]
        num = hidden[..., 0].numel()
        self.flops += first + further * (num - 1)
        return torch.zeros(*hidden.shape[:2], self.head.channels)

    def _cost(
        self, hidden: Tensor, others: dict[str, Tensor], given: dict[str, Any], num: int
    ) -> float:
        """FLOPs of sampling `num` tokens."""
        few: dict[str, Any] = {name: torch.zeros(1, num, hidden.shape[-1]) for name in others}
        plain = {
            k: v for k, v in given.items() if k not in others and k not in ("frame", "generator")
        }
        with flop_counter() as counter:
            self._sample(torch.zeros(1, num, hidden.shape[-1]), **few, **plain)
        found = float(counter.get_total_flops())
        self.flops -= found  # the counter around the whole generation counts this too
        return found
