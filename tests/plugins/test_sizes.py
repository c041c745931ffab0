"""The tokenizers' sizes by name: parameters, strides, and that the two token types differ in the bottleneck alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from arvid.contracts import VideoTokenizer
from arvid.nn.causal_conv import PUBLISHED
from arvid.training.instantiate import build

FOLDER = Path(__file__).parents[2] / "configs/tokenizers"
PARAMETERS = {
    "magvit_fsq-published": 370_372_105,
    "magvit_fsq-base": 92_649_225,
    "magvit_fsq-small": 792_473,
    "vae3d-published": 370_523_683,
    "vae3d-base": 92_725_027,
    "vae3d-small": 801_971,
}


def tokenizer_config(name: str) -> dict[str, Any]:
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    config: dict[str, Any] = content["model"]["init_args"]["tokenizer"]
    return config


def on_meta(name: str) -> VideoTokenizer:
    with torch.device("meta"):
        return build("tokenizers", tokenizer_config(name), what=name)


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_parameters(name: str, parameters: int) -> None:
    tokenizer = on_meta(name)
    assert sum(p.numel() for p in tokenizer.parameters()) == parameters
    assert tokenizer.spec.strides == (4, 8, 8)
    millions = f"{parameters / 1e6:.1f} million parameters"
    assert millions in (FOLDER / f"{name}.yaml").read_text()


def test_the_published_size_is_the_default() -> None:
    for kind in ("magvit_fsq", "vae3d"):
        sized = on_meta(f"{kind}-published")
        with torch.device("meta"):
            default = type(sized)()
        assert sized.hyperparameters == default.hyperparameters
    assert on_meta("magvit_fsq-published").spec.size == 64_000
    assert PUBLISHED.channels == (128, 256, 256, 512)


@pytest.mark.parametrize("size", ["published", "base", "small"])
def test_both_token_types_have_the_same_backbone(size: str) -> None:
    discrete, continuous = (
        tokenizer_config(f"{kind}-{size}")["init_args"] for kind in ("magvit_fsq", "vae3d")
    )
    assert discrete.pop("backbone") == continuous.pop("backbone")
    assert (*discrete, *continuous) == ("levels", "latent_channels")
