"""Plans against real runs at small size: parameters, FLOPs, saved tensors, state, sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from arvid.evaluation.budget import generation_flops
from arvid.nn.attend import BlockCausal, attend
from arvid.nn.draws import Dropout, drawing_by
from arvid.planning.fake import FakeNetworks, at_quantile, without_storage
from arvid.planning.generation import generation_cost
from arvid.planning.memory import count_state
from arvid.planning.networks import (
    example_condition,
    example_tokens,
    plan_generator,
    plan_tokenizer,
)
from arvid.planning.setting import Setting, read_setting
from arvid.planning.step import SavedTensors, StepCost, measure_step
from arvid.sampling.sample import Conditions, clip_grid
from arvid.training.cli import parse_fit
from arvid.training.generator_module import GeneratorModule, build_generator
from arvid.training.optimizer import OptimizerConfig, build_optimizer

BATCH = 3
CASES = [
    ("nova", "continuous"),
    ("nova", "discrete"),
    ("next_block", "discrete"),
    ("next_token", "continuous"),
    ("masked", "discrete"),
    ("mar", "continuous"),
    ("frame_diffusion", "continuous"),
    ("next_scale", "discrete"),
]
"""Configurations of all paradigms, and both token types."""


def setting_of(paradigm: str, token_type: str = "", size: Sequence[str] = ()) -> Setting:
    names = ["settings/sprites", f"paradigms/{paradigm}", "sizes/debug"]
    given = [part for name in names for part in ("--config", name)]
    options = [f"--model.init_args.token_type={token_type}"] if token_type else []
    return read_setting(parse_fit([*given, *options, *size]), names)


def real_model(setting: Setting) -> GeneratorModule:
    shape = list(setting.clip_shape)
    config = {**setting.model, "clip_shape": shape, "value_names": setting.value_names}
    return build_generator({**config, "num_classes": setting.num_classes})


def losses(module: GeneratorModule, batch_size: int) -> Sequence[Tensor]:
    tokens = example_tokens(module, batch_size, clip_grid(module).t)
    return [module.paradigm.loss(tokens, example_condition(module, batch_size))["loss"]]


@contextmanager
def real_run() -> Iterator[None]:
    """Random numbers that decide about shapes are those of a fake run."""
    with drawing_by(lambda sample: at_quantile(sample, 0.5)):
        yield


def planned_cost(setting: Setting) -> StepCost:
    fakes = FakeNetworks(setting.precision, gpu=False)
    module = plan_generator(setting, plan_tokenizer(setting), fakes).train()
    with fakes.running(uniform=0.5):
        return measure_step(module, lambda: losses(module, BATCH))


@pytest.mark.parametrize(("paradigm", "token_type"), CASES)
def test_a_step_against_a_real_one(paradigm: str, token_type: str) -> None:
    setting = setting_of(paradigm, token_type)
    planned, module = planned_cost(setting), real_model(setting).train()
    with real_run():
        real = measure_step(module, lambda: losses(module, BATCH))
    assert planned.flops == pytest.approx(real.flops, rel=0.01)
    assert planned.saved == pytest.approx(real.saved, rel=0.05)
    assert planned.peak == pytest.approx(real.peak, rel=0.05)
    assert real.peak > real.saved > 1e6


@pytest.mark.parametrize(("paradigm", "token_type"), CASES)
def test_parameters_are_exact(paradigm: str, token_type: str) -> None:
    setting = setting_of(paradigm, token_type)
    planned = plan_generator(setting, plan_tokenizer(setting), FakeNetworks())
    real = real_model(setting)
    shapes = {name: (p.shape, p.requires_grad) for name, p in real.named_parameters()}
    assert shapes == {n: (p.shape, p.requires_grad) for n, p in planned.named_parameters()}


def test_saved_tensors_of_a_linear_map() -> None:
    layer, x = nn.Linear(8, 4), torch.randn(5, 8)
    saved = SavedTensors(layer.parameters())
    with saved.recording():
        layer(x).square().sum()
    assert saved.num_bytes == 4 * (5 * 8 + 5 * 4)  # the input, and what is squared


def test_peak_counts_temporary_tensors_and_frees_them() -> None:
    weight = nn.Parameter(torch.zeros(1000))
    holder = nn.Module()
    holder.weight = weight
    cost = measure_step(holder, lambda: [(weight + 1).add(1).sum()])
    assert 4 * 2000 <= cost.peak < 4 * 3100  # two of the three vectors live at a time


@pytest.mark.parametrize("muon", [False, "transformer", True])
def test_state_against_a_real_optimizer(muon: bool | str) -> None:
    module = real_model(setting_of("nova", "continuous"))
    config = OptimizerConfig(lr=1e-3, muon=muon, schedule="constant")  # type: ignore[arg-type]
    optimizer = build_optimizer(module, config, max_steps=1)["optimizer"]
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [s for part in getattr(optimizer, "parts", (optimizer,)) for s in part.state.values()]
    kept = sum(4 * t.numel() for s in states for t in s.values() if t.ndim)
    state = count_state(module, muon=muon, averages=True)
    assert state.optimizer == kept
    assert state.weights == state.gradients == sum(4 * p.numel() for p in trained)
    assert state.averages == state.weights + state.frozen
    assert 0 < state.block < state.weights


@pytest.mark.parametrize(
    ("paradigm", "depth"), [("nova", 9), ("next_block", 14), ("mar", 7), ("frame_diffusion", 3)]
)
def test_sampling_against_a_real_count(paradigm: str, depth: int) -> None:
    steps = ["--model.init_args.sampling={guidance: 3.0, diffusion_steps: 4, num_sets: 3}"]
    few = dict.fromkeys(["frame_diffusion", "mar", "nova"], steps)
    size = ["--model.init_args.size.depth", str(depth)]
    setting = setting_of(paradigm, size=[*size, *few.get(paradigm, [])])
    fakes, tokenizer = FakeNetworks(), plan_tokenizer(setting)
    cost = generation_cost(
        lambda blocks: plan_generator(setting, tokenizer, fakes, depth=blocks), depth, fakes
    )
    model = real_model(setting).eval()
    counted = generation_flops(model, Conditions(num_clips=1, captions=["a"]))
    assert cost.flops + cost.decoding_flops == pytest.approx(counted, rel=0.01)
    assert cost.evaluations == model.paradigm.num_evaluations(
        clip_grid(model), options=model.sampling
    )
    if (
        paradigm == "next_block"
    ):  # keys and values of context and tokens, in both passes of guidance
        positions = len(model.paradigm.blocks)
        assert cost.cache == 2 * 2 * depth * positions * 32 * 4


def test_gpus_store_the_mask_of_dropout_in_bytes() -> None:
    for gpu, num_bytes in ((False, 4), (True, 1)):
        fakes, saved = FakeNetworks(gpu=gpu), SavedTensors([])
        x = fakes.zeros(1000).requires_grad_()
        with fakes.running(), saved.recording():
            Dropout(0.5)(x)
        assert saved.num_bytes == num_bytes * 1000


def test_gpus_store_no_attention_mask() -> None:
    mask = BlockCausal(torch.arange(64) // 8)
    sizes = {}
    for gpu in (False, True):
        fakes, saved = FakeNetworks(gpu=gpu), SavedTensors([])
        x = fakes.zeros(1, 1, 64, 8).requires_grad_()
        with fakes.running(), saved.recording():
            attend(x, x, x, mask)
        sizes[gpu] = saved.num_bytes
    assert sizes[True] == 4 * (2 * 64 * 8 + 64)  # input and output, and a number for each query
    assert sizes[False] > sizes[True]


def test_gpus_keep_norms_in_float32_under_autocast() -> None:
    norm = nn.LayerNorm(8)
    for gpu, dtype in ((False, torch.bfloat16), (True, torch.float32)):
        fakes = FakeNetworks("bf16-mixed", gpu=gpu)
        x = fakes.zeros(4, 8, dtype=torch.bfloat16)
        with fakes.running():
            assert norm(x).dtype == dtype


def test_large_parameters_take_no_memory_and_buffers_keep_their_values() -> None:
    with without_storage():
        layer = nn.Linear(10**6, 10**6)
        layer.register_buffer("values", torch.arange(3))
    assert layer.weight.is_meta
    FakeNetworks().take(layer)
    assert layer.weight.shape == (10**6, 10**6)
    assert layer.values.tolist() == [0, 1, 2]
