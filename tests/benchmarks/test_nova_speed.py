"""The speed benchmark of NOVA: its parts add up, its FLOPs are those of the work, its page holds every case."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from arvid.contracts import Size, TokenGrid, UserError

SCRIPT = "speed/nova"


def tiny(script: ModuleType) -> Any:
    return dataclasses.replace(
        script.DEMO,
        size=Size(dim=32, depth=3, num_heads=2, head_dim=16, head_depth=1),
        grid=TokenGrid(3, 8, 8),
        other_grids=(TokenGrid(1, 4, 8),),
        text=(8, 4),
        num_sets=2,
        diffusion_steps=2,
        matrix=64,
    )


def test_one_frame_counted_stands_for_all(script: ModuleType) -> None:
    scale = tiny(script)
    with FlopCounterMode(display=False) as counter:
        script.draw(script.on_meta(scale).eval(), scale, 2, counter.get_total_flops)
    counted = script.sampling_flops(scale, 2)
    assert counted["all"] == counter.get_total_flops()
    assert min(counted[name] for name in script.PARTS) > 0
    one = script.sampling_flops(scale, 1)["all"]
    assert counted["all"] == pytest.approx(2 * one, rel=0.02)  # embedded times serve all clips


def test_the_way_back_costs_about_twice_the_way_forward(script: ModuleType) -> None:
    counted = script.training_flops(tiny(script), 1)
    forward = sum(v for k, v in counted.items() if k not in ("backward", "optimizer", "all"))
    assert counted["all"] == forward + counted["backward"]
    assert 1.5 < counted["backward"] / forward < 2.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_parts_add_up_and_the_model_is_left_as_it_was(
    script: ModuleType, dtype: torch.dtype
) -> None:
    scale = tiny(script)
    model = scale.build().eval().to(dtype)
    seconds = script.draw(model, scale, 1, script.clock("cpu"))
    assert seconds["all"] == pytest.approx(sum(v for k, v in seconds.items() if k != "all"))
    assert all(v >= 0 for v in seconds.values())
    assert max(seconds[name] for name in script.PARTS) > 0
    assert "forward" not in vars(model.spatial)
    assert "sample" not in vars(model.head)


def test_the_published_model_has_its_size(script: ModuleType) -> None:
    """Facts §1.12: 644,194,320 trainable numbers."""
    model = script.on_meta(script.PAPER)
    assert sum(p.numel() for p in model.parameters()) == 644_194_320


def test_a_gpu_is_asked_for(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(sys, "argv", ["nova", "--scale", "paper"])
    with pytest.raises(UserError, match="GPU"):
        script.main()


def test_the_page(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(script.SCALES, "demo", tiny(script))
    monkeypatch.setattr(sys, "argv", ["nova", "--no-compile", "--rounds=1", f"--out={tmp_path}"])
    script.main()
    page = (tmp_path / "table.md").read_text()
    assert "## A batch of clips: 1" in page
    assert "## A training step: 2" in page
    for part in (*script.PARTS, "rest", "backward", "optimizer", "all"):
        assert f"| {part} |" in page
    report = json.loads((tmp_path / "results.json").read_text())
    assert [case["kind"] for case in report["cases"]] == ["sampling", "training"]
    assert all(case["ways"]["as it is"]["seconds"]["all"] > 0 for case in report["cases"])
    assert report["flops_per_second"] > 0
    assert "| 1 x 4x8 |" in page
    assert [clip["grid"]["t"] for clip in report["clips"]] == [1, 3]


def test_the_ways_share_their_weights(script: ModuleType) -> None:
    works = script.build_works(tiny(script), "training", 1, ("as it is", "compiled"))
    models = [work.args[0] for work in works.values()]
    assert models[0] is not models[1]
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        assert one is other


def test_what_fails_is_named(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(script, "step", out_of_memory)
    monkeypatch.setattr(script, "training_flops", lambda *_: {"all": 1.0})
    found = script.case(tiny(script), "training", 1, ("as it is",), 1)
    assert not found["ways"]
    assert script.case_lines(found, 1.0)[-1] == "as it is: failed, RuntimeError out of memory."


def test_the_appendix_table_has_the_seconds_of_one_clip(script: ModuleType) -> None:
    """Appendix, table 1: 29 frames, which are 8 latent frames."""
    scale = script.APPENDIX
    assert scale.grid.t * 4 - 3 == 29
    assert (scale.num_sets, scale.diffusion_steps, scale.sampling_batches) == (64, 100, (24,))
    seconds = {"temporal layers": 24.0, "spatial layers": 48.0, "rest": 24.0, "all": 96.0}
    case = {"batch": 24, "ways": {"as it is": {"seconds": seconds}}}
    lines = script.published_lines({"cases": [case]})
    assert lines[-2:] == [
        "| published, A100 | 0.03 | 11.97 | 12.00 |",
        "| arvid, as it is | 1.00 | 3.00 | 4.00 |",
    ]
