"""GPU memory in training: bytes of the state, and which sharding, checkpointing and micro-batch fit together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from arvid.training.muon import stacked_matrices

Sharding = Literal["one GPU", "DDP", "FSDP"]
BUCKETED: Sharding = "DDP"
"""Sharding with buckets of gradients. They take as much memory as the gradients."""
PREFETCHED = 2
"""Number of blocks whose weights FSDP has gathered at a time: the running block and the next one."""


@dataclass(frozen=True)
class State:
    """Bytes that stay on a GPU during training, without sharding."""

    weights: int
    """Trained parameters."""
    frozen: int
    """Frozen parameters, such as those of the tokenizer."""
    gradients: int
    optimizer: int
    averages: int
    block: int
    """Weights of the largest block of a stack."""
    rest: int
    """Weights of trained parameters outside stacks of blocks."""

    def per_gpu(self, sharding: Sharding, num_gpus: int) -> float:
        """Bytes on each GPU. FSDP divides everything but frozen weights, and gathers the weights of a few blocks."""
        divisible = self.weights + self.gradients + self.optimizer + self.averages
        if sharding == "FSDP":
            gathered = self.rest + PREFETCHED * self.block
            return divisible / num_gpus + gathered + self.frozen
        return divisible + self.frozen + (self.gradients if sharding == BUCKETED else 0)


def count_state(module: nn.Module, *, muon: bool | str, averages: bool) -> State:
    """The state of training a module with AdamW, or with Muon for its blocks' matrices.

    AdamW keeps two numbers for each parameter, Muon one. Averages are a copy of the whole module.
    """
    parameters = list(module.parameters())
    trained = [p for p in parameters if p.requires_grad]
    matrices = stacked_matrices(module, heads=muon is True) if muon else []
    weights = num_bytes(trained)
    blocks = [num_bytes(block.parameters()) for block in _blocks(module)]
    return State(
        weights=weights,
        frozen=num_bytes(p for p in parameters if not p.requires_grad),
        gradients=weights,
        optimizer=2 * weights - num_bytes(matrices),
        averages=num_bytes(parameters) if averages else 0,
        block=max(blocks, default=0),
        rest=max(weights - sum(blocks), 0),
    )


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The trained blocks of all outermost stacks (`nn.ModuleList`)."""
    stacks = [child for child in module.modules() if isinstance(child, nn.ModuleList)]
    inner = {id(m) for stack in stacks for block in stack for m in block.modules()}
    outer = [stack for stack in stacks if id(stack) not in inner]
    found = [block for stack in outer for block in stack]
    return [block for block in found if any(p.requires_grad for p in block.parameters())]


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True)
class Activations:
    """Peak memory of a step without the state, as a function of the micro-batch: `fixed` + clips x `per_clip`."""

    fixed: float
    per_clip: float

    @classmethod
    def through(cls, first: tuple[int, int], second: tuple[int, int]) -> Activations:
        """The line through two measured (clips, bytes)."""
        (clips_a, bytes_a), (clips_b, bytes_b) = first, second
        slope = (bytes_b - bytes_a) / (clips_b - clips_a)
        return cls(bytes_a - slope * clips_a, slope)

    def at(self, clips: int) -> float:
        """Bytes for a micro-batch."""
        return self.fixed + self.per_clip * clips

    def most_clips(self, num_bytes: float) -> int:
        """The largest micro-batch that fits into `num_bytes`; 0 if none fits."""
        return max(int((num_bytes - self.fixed) // self.per_clip), 0)


@dataclass(frozen=True)
class Fit:
    """A combination of sharding and checkpointing, its memory, and whether it fits."""

    sharding: Sharding
    checkpoint: str
    state: float
    """Bytes of the state on each GPU."""
    activations: float
    """Peak bytes of a step with the setting's micro-batch, without the state."""
    micro_batch: int
    """Largest micro-batch that fits and divides the clips of a step; 0 if none fits."""
    fits: bool
    """Whether the setting's micro-batch fits."""
    flops: float
    """FLOPs of one clip, including recomputation by checkpointing."""

    @property
    def total(self) -> float:
        """Memory of a training step."""
        return self.state + self.activations


def fit_ways(
    state: State,
    activations: dict[str, Activations],
    flops: dict[str, float],
    *,
    batch_size: int,
    clips_per_gpu: int,
    num_gpus: int,
    memory: float,
) -> list[Fit]:
    """All combinations of sharding and checkpointing, in order of preference.

    Args:
        state: state of the training.
        activations: peak memory of a step, by name of the checkpointing.
        flops: FLOPs of one clip, by name of the checkpointing.
        batch_size: the setting's micro-batch.
        clips_per_gpu: clips of a step on each GPU.
        num_gpus: number of GPUs.
        memory: bytes of a GPU that tensors can use.
    """
    shardings: Sequence[Sharding] = ("DDP", "FSDP") if num_gpus > 1 else ("one GPU",)
    ways = []
    for sharding in shardings:
        held = state.per_gpu(sharding, num_gpus)
        for name, line in activations.items():
            most = line.most_clips(memory - held)
            ways.append(
                Fit(
                    sharding,
                    name,
                    held,
                    line.at(batch_size),
                    largest_divisor(clips_per_gpu, most),
                    batch_size <= most,
                    flops[name],
                )
            )
    return ways


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of a number up to a limit; 0 for a limit below 1."""
    return next((n for n in range(min(number, limit), 0, -1) if number % n == 0), 0)
