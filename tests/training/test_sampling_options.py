"""Sampling options of a setting hold for all rows: each model takes its own, also from files of earlier versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from arvid import registry
from arvid.cli import main
from arvid.contracts import Paradigm, UserError
from arvid.training.checkpoint_io import SEALED
from arvid.training.generator_module import load_generator, load_sampling
from arvid.training.keys import CHECKPOINT_KEY
from arvid.training.sampling_options import build_sampling

EARLIER = {
    "guidance": 3.0,
    "temperature": 1.0,
    "top_k": None,
    "top_p": 0.9,
    "last_temperature": None,
    "rounds": 1,
    "compiled": False,
    "diffusion_steps": 25,
    "use_cache": True,
    "guidance_min": None,
    "guidance_trunc": 0.0,
    "guidance_renorm": 1.0,
    "image_guidance": 0.0,
    "flow_shift": None,
    "num_sets": None,
    "overlap": None,
    "whole_noise": False,
}
"""As commit 17cedba wrote the options of every model."""


def paradigm(name: str) -> type[Paradigm]:
    found: type[Paradigm] = registry.get("paradigms", name)
    return found


def test_a_model_takes_its_own_options_and_ignores_those_of_others() -> None:
    setting = {"guidance": 5.0, "diffusion_steps": 100, "top_k": 7, "rounds": 2, "num_sets": 3}
    found = {
        (name, kind): build_sampling(paradigm(name), kind, setting).changed()
        for name in ("nova", "next_block")
        for kind in ("discrete", "continuous")
    }
    assert found == {
        ("nova", "discrete"): {"guidance": 5.0, "top_k": 7, "num_sets": 3},
        ("nova", "continuous"): {"guidance": 5.0, "diffusion_steps": 100, "num_sets": 3},
        ("next_block", "discrete"): {"guidance": 5.0, "top_k": 7, "rounds": 2},
        ("next_block", "continuous"): {"guidance": 5.0, "diffusion_steps": 100, "rounds": 2},
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"tempreature": 1.0},
            r"no option tempreature. NOVA with discrete tokens has guidance, .*top_p",
        ),
        ({"top_p": 2.0}, "top_p must be above 0 and at most 1, not 2"),
        ({"rounds": 0}, "rounds must be at least 1, not 0"),  # of another paradigm
        ({"diffusion_steps": "x"}, "diffusion_steps"),  # of another head
        ({1: 2}, "no option 1"),
        (["top_k"], "must be options by name"),
    ],
)
def test_what_means_nothing_for_any_model_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_sampling(paradigm("nova"), "discrete", given)


def test_checkpoints_of_earlier_versions_hold_all_options(
    trained_run: Path, tmp_path: Path
) -> None:
    state = torch.load(trained_run / "checkpoints/last.ckpt", weights_only=True)
    description = json.loads(state[CHECKPOINT_KEY])
    assert description["config"]["sampling"].keys() <= EARLIER.keys()
    description["config"]["sampling"] = EARLIER
    del state[SEALED]
    torch.save({**state, CHECKPOINT_KEY: json.dumps(description)}, tmp_path / "earlier.ckpt")
    model = load_generator(tmp_path / "earlier.ckpt")
    assert model.sampling.changed() == {"guidance": 3.0, "top_p": 0.9}
    assert load_sampling(tmp_path / "earlier.ckpt") == model.sampling


def test_a_later_configuration_changes_some_of_the_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("model: {init_args: {sampling: {guidance: 5.0, rounds: 2}}}\n")
    flag = "--model.init_args.sampling"
    configs = ["--config=settings/sprites", f"{flag}.top_k=4", f"--config={own}"]
    with pytest.raises(SystemExit):
        main(["fit", *configs, f"{flag}.rounds=3", "--print_config"])
    written = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["sampling"]
    assert written == {"guidance": 5.0, "top_p": 0.9, "top_k": 4, "rounds": 3}
