"""The command `arvid plan`: settings without their files, what fits, devices, output."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from torch import Tensor

from arvid.cli import main
from arvid.contracts import UserError
from arvid.nn.checkpointing import CHECKPOINTINGS, set_checkpointing
from arvid.planning.devices import DEVICES, GIB, find_device
from arvid.planning.fake import FakeNetworks
from arvid.planning.memory import Activations, State, fit_ways, largest_divisor
from arvid.planning.networks import (
    example_condition,
    example_tokens,
    plan_generator,
    plan_tokenizer,
)
from arvid.planning.plan import Plan, make_plan
from arvid.planning.setting import Setting, read_setting
from arvid.planning.step import measure_step
from arvid.planning.table import recommendation
from arvid.training.cli import parse_fit

PAPERS = [  # setting and paradigm, size, parameters in millions, clip
    ("nova-paper-video", "d48w1024", 644.2, (33, 480, 768)),
    ("nova-released-video", "d48w1024", 644.2, (33, 480, 768)),
    ("nova-paper-image", "d48w1024", 641.5, (1, 512, 512)),
    ("nova-released-image", "d48w1024-sdxl", 645.7, (1, 1024, 1024)),
    ("nbp-paper-k600", "d24w1536", 878.5, (17, 128, 128)),
    ("nbp-released-k600", "d32w3072", 4034.1, (17, 128, 128)),
    ("nbp-paper-ucf101", "d24w1536", 976.8, (17, 128, 128)),
    ("nbp-released-ucf101", "d24w2048", 1612.4, (17, 128, 128)),
]
GPU = find_device("H200")


def setting_of(*names: str, options: tuple[str, ...] = ()) -> Setting:
    given = [part for name in names for part in ("--config", name)]
    return read_setting(parse_fit([*given, *options]), names)


@pytest.fixture(scope="module")
def small() -> Plan:
    names = ("settings/sprites", "paradigms/nova", "sizes/debug")
    quick = ("--model.init_args.paradigm.init_args.num_sets=2",)
    return make_plan(setting_of(*names, options=quick), GPU)


@pytest.mark.parametrize(("name", "size", "millions", "clip"), PAPERS)
def test_the_papers_models_are_built_without_any_file(
    name: str, size: str, millions: float, clip: tuple[int, int, int]
) -> None:
    setting = setting_of(f"settings/{name}", f"paradigms/{name}", f"sizes/{size}")
    assert setting.clip_shape == clip
    module = plan_generator(setting, plan_tokenizer(setting), FakeNetworks())
    count = sum(p.numel() for p in module.paradigm.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_missing_tokenizer_is_that_of_the_setting() -> None:
    setting = setting_of("settings/clips", "paradigms/nova", "sizes/debug")
    planned = plan_tokenizer(setting)
    assert "tokenizers/clips-vae3d" in planned.note
    assert planned.tokenizer.spec.size == 8
    other = plan_tokenizer(setting, "tokenizers/vae3d-small")
    assert other.tokenizer.spec.size == 16
    with pytest.raises(UserError, match="discrete, not continuous"):
        plan_tokenizer(setting, "tokenizers/magvit_fsq-small")


def test_a_setting_without_a_clip_size_asks_for_it() -> None:
    options = (
        "--data.train=arvid.data.token_shards.TokenShards",
        "--data.train.init_args.path=shards",
    )
    names = ("settings/sprites", "paradigms/nova", "sizes/debug")
    with pytest.raises(UserError, match="--clip FRAMES HEIGHT WIDTH"):
        setting_of(*names, options=options)


def test_flops_and_days_by_hand(small: Plan) -> None:
    cost = small.training.steps["none"]
    assert small.setting.batch_size == small.clips_per_step == 8
    assert small.num_gpus == 8
    assert small.step_flops == cost.flops
    assert small.speed == 0.4 * 494.7e12  # float32: TF32
    best = small.best
    assert best is not None
    expected = best.flops * 8 * 1400 / (small.speed * 8)
    assert small.seconds(best.flops) == pytest.approx(expected)


def test_checkpointing_costs_time_and_saves_memory(small: Plan) -> None:
    none, blocks, head = (small.training.steps[n] for n in ("none", "blocks", "blocks_and_head"))
    assert none.flops < blocks.flops < head.flops < 1.5 * none.flops
    assert none.saved > blocks.saved > head.saved


def test_checkpointed_blocks_are_freed_one_by_one() -> None:
    depth = ("--model.init_args.size.depth=12", "--model.init_args.size.dim=64")
    names = ("settings/sprites", "paradigms/next_token", "sizes/debug")
    setting = setting_of(*names, options=depth)
    fakes = FakeNetworks()
    module = plan_generator(setting, plan_tokenizer(setting), fakes).train()

    def losses() -> list[Tensor]:
        tokens, condition = example_tokens(module, 2, 3), example_condition(module, 2)
        return [module.paradigm.loss(tokens, condition)["loss"]]

    peaks = {}
    for checkpoint in CHECKPOINTINGS:
        set_checkpointing(module, checkpoint)
        with fakes.running():
            peaks[checkpoint] = measure_step(module, losses).peak
    assert peaks["blocks_and_head"] <= peaks["blocks"] < 0.5 * peaks["none"]


def test_averages_and_muon_are_in_the_state(small: Plan) -> None:
    state = small.training.state
    assert state.averages > state.weights
    assert state.weights < state.optimizer < 2 * state.weights  # Muon keeps one number, AdamW two


def test_the_largest_micro_batch_divides_the_clips_of_a_gpu() -> None:
    state = State(weights=10, frozen=2, gradients=10, optimizer=20, averages=0, block=3, rest=1)
    lines = {"none": Activations(4, 6), "blocks": Activations(2, 1)}
    ways = fit_ways(
        state,
        lines,
        {"none": 1.0, "blocks": 1.3},
        batch_size=4,
        clips_per_gpu=12,
        num_gpus=2,
        memory=80,
    )
    found = [(w.sharding, w.checkpoint, w.state, w.micro_batch, w.fits) for w in ways]
    assert found == [
        ("DDP", "none", 52, 4, True),  # 24 left for 4 + 6 b
        ("DDP", "blocks", 52, 12, True),
        ("FSDP", "none", 29, 6, True),
        ("FSDP", "blocks", 29, 12, True),
    ]
    assert ways[0].total == 52 + 4 + 6 * 4


def test_what_does_not_fit_is_said(small: Plan) -> None:
    none = replace(small, ways=[replace(way, micro_batch=0, fits=False) for way in small.ways])
    assert none.best is None
    assert "Nothing fits" in recommendation(none)
    assert "Recommended: DDP" in recommendation(small)


@pytest.mark.parametrize(("number", "limit", "largest"), [(48, 7, 6), (5, 4, 1), (6, 0, 0)])
def test_largest_divisor(number: int, limit: int, largest: int) -> None:
    assert largest_divisor(number, limit) == largest


def test_devices_are_found_by_any_spelling() -> None:
    assert find_device("rtx 4090").name == "RTX4090"
    assert find_device("NVIDIA-h100").bytes < 80 * GIB
    assert all(d.half >= d.single > 0 for d in DEVICES)
    with pytest.raises(UserError, match="Did you mean H100"):
        find_device("H10")


def test_this_machine_is_measured() -> None:
    device = find_device("measured")
    assert device.memory > 0
    assert device.rate("32-true") > 1e8


def test_gpus_must_share_a_step(small: Plan) -> None:
    with pytest.raises(UserError, match="3 GPUs cannot share the 8 clips"):
        make_plan(small.setting, GPU, num_gpus=3)


ARGUMENTS = ["--config=settings/sprites", "--config=paradigms/next_block", "--config=sizes/debug"]


def test_the_command_takes_the_options_of_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *ARGUMENTS, "--trainer.max_steps", "7", "--json", "--gpus", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 7 * 8 * 3 * 8 * 8
    assert found["flops_total"] == pytest.approx(7 * found["flops_per_step"])


def test_the_command_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *ARGUMENTS, "--device", "A100"]) == 0
    printed = capsys.readouterr().out
    for part in ("Parameters", "blocks_and_head", "FSDP", "GPU-hours", "evaluations: transformer"):
        assert part in printed
    assert "Recommended: DDP, checkpointing none" in printed


def test_a_tokenizers_training(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("tokenizers/sprites-vae3d", "settings/sprites-tokenizers")
    assert main(["plan", *(f"--config={name}" for name in names)]) == 0
    printed = capsys.readouterr().out
    assert "Sampling" not in printed
    assert "encoder" in printed


def test_wrong_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *ARGUMENTS, "--data.batchsize=3"]) == 2
    assert "batch" in capsys.readouterr().err
    assert main(["plan", *ARGUMENTS, "--device=H2000"]) == 2
    assert "Did you mean H200" in capsys.readouterr().err
