"""The plan of a run: everything that `arvid plan` prints, as numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from arvid.contracts import TokenSpec, UserError
from arvid.nn.checkpointing import CHECKPOINTINGS, Checkpointing, set_checkpointing
from arvid.planning.devices import Device
from arvid.planning.fake import FakeNetworks
from arvid.planning.generation import GenerationCost, encoding_flops, generation_cost
from arvid.planning.memory import Activations, Fit, State, count_state, fit_ways, largest_divisor
from arvid.planning.networks import (
    PlannedTokenizer,
    example_condition,
    example_tokens,
    plan_generator,
    plan_tokenizer,
    plan_tokenizer_training,
)
from arvid.planning.setting import Setting
from arvid.planning.step import StepCost, measure_step
from arvid.training.generator_module import GeneratorModule
from arvid.training.tokenizer_module import TokenizerModule

MOST_GPUS = 8
"""GPUs of one machine."""
MEDIAN = 0.5
EXTREMES = (0.0, 0.999)
"""Quantiles of the random numbers that decide shapes. One of these two gives the step with the most memory."""


@dataclass(frozen=True)
class Training:
    """Costs of the training steps of one network."""

    parts: dict[str, int]
    """Parameters by part."""
    trained: int
    """Trained parameters."""
    state: State
    steps: dict[str, StepCost]
    """Cost of a micro-batch by checkpointing: FLOPs for shapes at the median, memory for the largest shapes."""
    lines: dict[str, Activations]
    """Peak memory without the state, for any micro-batch, by checkpointing."""


@dataclass(frozen=True)
class Encoding:
    """Costs of encoding the clips into token shards."""

    flops: float
    """FLOPs of one clip."""
    bytes_per_clip: int


@dataclass(frozen=True)
class Plan:
    """All costs of a run on `num_gpus` devices."""

    setting: Setting
    device: Device
    num_gpus: int
    utilisation: float
    training: Training
    tokens_per_clip: int
    clips_per_step: int
    ways: list[Fit]
    generation: GenerationCost | None
    """None for the training of a tokenizer."""
    encoding: Encoding | None
    notes: tuple[str, ...]

    @property
    def step_flops(self) -> float:
        """FLOPs of an optimiser step over all GPUs, without checkpointing."""
        return self.training.steps["none"].flops / self.setting.batch_size * self.clips_per_step

    @property
    def speed(self) -> float:
        """FLOP/s of one GPU at the stated utilisation."""
        return self.device.rate(self.setting.precision) * self.utilisation

    def seconds(self, flops_per_clip: float) -> float:
        """Seconds of the whole training on all GPUs."""
        clips = self.clips_per_step * self.setting.max_steps
        return flops_per_clip * clips / (self.speed * self.num_gpus)

    @property
    def best(self) -> Fit | None:
        """The first way that fits with the setting's micro-batch, or else with a smaller one; None if none fits."""
        fitting = [way for way in self.ways if way.micro_batch]
        return next((way for way in fitting if way.fits), fitting[0] if fitting else None)


def make_plan(
    setting: Setting,
    device: Device,
    *,
    num_gpus: int | None = None,
    utilisation: float = 0.4,
    tokenizer: str | None = None,
) -> Plan:
    """The plan of a setting.

    Args:
        setting: see `read_setting`.
        device: the kind of GPU.
        num_gpus: number of GPUs that train together; by default `MOST_GPUS`, or fewer if they cannot share a step.
        utilisation: share of the device's peak rate that the training reaches.
        tokenizer: configuration of the tokenizer, if it has no file yet (see `plan_tokenizer`).

    Raises UserError for a number of GPUs that does not divide the clips of a step.
    """
    if num_gpus is None:
        num_gpus = largest_divisor(setting.clips_per_step or MOST_GPUS, MOST_GPUS)
    clips_per_step = setting.clips_per_step or setting.batch_size * num_gpus
    if clips_per_step % num_gpus:
        raise UserError(
            f"{num_gpus} GPUs cannot share the {clips_per_step} clips of a step (data.clips_per_step) equally: "
            "choose another --gpus."
        )
    fakes = FakeNetworks(setting.precision)
    costs = (
        _generator(setting, fakes, tokenizer)
        if setting.is_generator
        else _tokenizer(setting, fakes)
    )
    batch = setting.batch_size
    ways = fit_ways(
        costs.training.state,
        costs.training.lines,
        {name: step.flops / batch for name, step in costs.training.steps.items()},
        batch_size=batch,
        clips_per_gpu=clips_per_step // num_gpus,
        num_gpus=num_gpus,
        memory=device.bytes,
    )
    return Plan(
        setting,
        device,
        num_gpus,
        utilisation,
        costs.training,
        costs.tokens_per_clip,
        clips_per_step,
        ways,
        costs.generation,
        costs.encoding,
        costs.notes,
    )


@dataclass(frozen=True)
class _Costs:
    """The costs that do not depend on the device and the number of GPUs."""

    training: Training
    tokens_per_clip: int
    generation: GenerationCost | None
    encoding: Encoding | None
    notes: tuple[str, ...]


def _generator(setting: Setting, fakes: FakeNetworks, override: str | None) -> _Costs:
    tokenizer = plan_tokenizer(setting, override)
    module = plan_generator(setting, tokenizer, fakes)
    grid = tokenizer.tokenizer.spec.grid(*setting.clip_shape)

    def losses(batch_size: int) -> Sequence[Tensor]:
        tokens = example_tokens(module, batch_size, grid.t)
        condition = example_condition(module, batch_size)
        return [module.paradigm.loss(tokens, condition)["loss"]]

    training = _training(
        setting, fakes, module, losses, _parts_of_generator(module), CHECKPOINTINGS
    )
    generation, encoding = _sampling(setting, tokenizer)
    notes = (tokenizer.note,) if tokenizer.note else ()
    return _Costs(training, grid.num_tokens, generation, encoding, notes)


def _sampling(setting: Setting, tokenizer: PlannedTokenizer) -> tuple[GenerationCost, Encoding]:
    """Costs of generation and encoding in float32, which is arvid's default for both."""
    fakes = FakeNetworks()

    def build(depth: int) -> GeneratorModule:
        return plan_generator(setting, tokenizer, fakes, depth=depth)

    generation = generation_cost(build, setting.model["size"]["depth"], fakes)
    spec = tokenizer.tokenizer.spec
    num_values = spec.grid(*setting.clip_shape).num_tokens * _values(spec)
    return generation, Encoding(
        encoding_flops(build(setting.model["size"]["depth"]), fakes), num_values
    )


def _values(spec: TokenSpec) -> int:
    """Bytes of a token in a shard: float32, or the smallest type for the ids (see `arvid.data.shard_files`)."""
    if spec.type == "continuous":
        return 4 * spec.size
    return 1 if spec.size <= 2**8 else 2 if spec.size <= 2**16 else 4


def _tokenizer(setting: Setting, fakes: FakeNetworks) -> _Costs:
    module = plan_tokenizer_training(setting, fakes)
    frames, height, width = setting.clip_shape

    def losses(batch_size: int) -> Sequence[Tensor]:
        return module.losses(fakes.zeros(batch_size, 3, frames, height, width))[0]

    training = _training(
        setting, fakes, module, losses, _parts_of_tokenizer(module), ("none", "blocks")
    )
    grid = module.tokenizer.spec.grid(*setting.clip_shape)
    return _Costs(training, grid.num_tokens, None, None, ())


def _training(
    setting: Setting,
    fakes: FakeNetworks,
    module: nn.Module,
    losses: Callable[[int], Sequence[Tensor]],
    parts: dict[str, int],
    checkpointings: Sequence[Checkpointing],
) -> Training:
    """Measure a step with each checkpointing: FLOPs for shapes at the median, memory for the largest shapes."""
    module.train()
    set_checkpointing(module, "none")
    config = setting.model["optimizer"]
    state = count_state(module, muon=config.get("muon", False), averages=setting.averages)
    batch, other = setting.batch_size, 2 if setting.batch_size == 1 else 1

    def at(uniform: float, batch_size: int) -> StepCost:
        with fakes.running(uniform=uniform):
            return measure_step(module, lambda: losses(batch_size))

    median = at(MEDIAN, batch)
    found = {MEDIAN: median}
    if fakes.drew:
        found |= {uniform: at(uniform, batch) for uniform in EXTREMES}
    worst = max(found, key=lambda uniform: found[uniform].peak)
    steps: dict[str, StepCost] = {}
    lines: dict[str, Activations] = {}
    for name in checkpointings:
        set_checkpointing(module, name)
        full = found[worst] if name == "none" else at(worst, batch)
        more = full.flops / found[worst].flops
        steps[name] = replace(full, flops=median.flops * more)
        lines[name] = Activations.through((other, at(worst, other).peak), (batch, full.peak))
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return Training(parts, trained, state, steps, lines)


def _parts_of_generator(module: GeneratorModule) -> dict[str, int]:
    parts = _children(module.paradigm)
    if module.conditioner.text is not None:
        parts["text encoder"] = _count(module.conditioner.text)
    parts["tokenizer (frozen)"] = _count(module.tokenizer)
    return {name: count for name, count in parts.items() if count}


def _parts_of_tokenizer(module: TokenizerModule) -> dict[str, int]:
    parts = _children(module.tokenizer)
    if module.adversary is not None:
        parts["discriminator"] = _count(module.adversary)
    return parts


def _children(module: nn.Module) -> dict[str, int]:
    """Parameters of each child, and of the module itself under "other"."""
    parts = {name.replace("_", " "): _count(child) for name, child in module.named_children()}
    parts["other"] = sum(p.numel() for p in module.parameters(recurse=False))
    return {name: count for name, count in parts.items() if count}


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def as_record(plan: Plan) -> Mapping[str, Any]:
    """The plan's main numbers as plain data, for scripts."""
    none = plan.training.steps["none"]
    best = plan.best
    return {
        "parameters": sum(plan.training.parts.values()),
        "trained_parameters": plan.training.trained,
        "flops_per_micro_batch": none.flops,
        "saved_bytes": {name: step.saved for name, step in plan.training.steps.items()},
        "peak_bytes": {name: step.peak for name, step in plan.training.steps.items()},
        "flops_per_step": plan.step_flops,
        "flops_total": plan.step_flops * plan.setting.max_steps,
        "tokens": plan.tokens_per_clip * plan.clips_per_step * plan.setting.max_steps,
        "days": plan.seconds(best.flops) / 86400 if best else math.nan,
    }
