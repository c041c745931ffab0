"""Ranges of options: what they hold, what they say, and that every numeric option of arvid has one."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable
from types import UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np
import pytest

from arvid import registry
from arvid.contracts import ContextSpec, Size, TokenGrid, TokenSpec, TokenType
from arvid.data.clips import ClipSpec
from arvid.data.datamodule import VideoDataModule
from arvid.data.sprites import Sprites
from arvid.errors import UserError
from arvid.evaluation.protocols import Protocol
from arvid.nn.causal_conv import Backbone
from arvid.nn.discriminator import PatchDiscriminator
from arvid.nn.heads import DiffusionOptions
from arvid.nn.heads.categorical import CategoricalSampling
from arvid.nn.heads.diffusion_process import DiffusionSampling
from arvid.nn.text import WordTextEncoder
from arvid.options import range_of
from arvid.ranges import FINITE, FPS, LIMIT, SHARE, Range, above, at_least, between
from arvid.training.adversarial import Adversarial
from arvid.training.averaging import EMAWeightAveraging
from arvid.training.callbacks import SampleVideos
from arvid.training.instantiate import parameters
from arvid.training.losses import Perceptual, Reconstruction
from arvid.training.optimizer import OptimizerConfig
from arvid.training.tokenizer_module import Images

NOT_FINITE = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (at_least(1), (1, 2.5, np.int64(3)), (0, -1, 0.5, LIMIT, "1"), "at least 1"),
        (above(0), (1e-30, 7), (0, -1), "above 0"),
        (above(0, at_most=1), (0.5, 1), (0, 1.5), "above 0 and at most 1"),
        (SHARE, (0, 0.5, 1), (-0.1, 1.1), "0 to 1"),
        (between(1, 1000), (1, 1000), (0, 1001), "1 to 1000"),
        (FPS, (0.5, 999), (0, 1000), "above 0 and below 1000"),
        (FINITE, (-1e30, 0), (), "a finite number"),
    ],
)
def test_what_a_range_holds(
    allowed: Range, inside: tuple[Any, ...], outside: tuple[Any, ...], words: str
) -> None:
    assert str(allowed) == words
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in (*outside, *NOT_FINITE))


def test_messages_name_option_value_and_range() -> None:
    at_least(1).require("size.", dim=1, depth=None, strides=(1, 2))
    with pytest.raises(UserError, match=r"^size\.dim must be at least 1, not 0\.$"):
        at_least(1).require("size.", dim=0)
    with pytest.raises(UserError, match=r"^strides must be at least 1, not -2\.$"):
        at_least(1).require(strides=(1, -2))
    with pytest.raises(UserError, match=r"^seed must be below 2\*\*63\.$"):
        at_least(0).require(seed=10**5000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "argument --count: must be at least 1, not 0"),
        ("x", "argument --count: must be a whole number, not 'x'"),
        ("", "argument --count: must be a whole number, not ''"),
        ("1.5", "argument --count: must be a whole number, not '1.5'"),
        ("1" + "0" * 30, "argument --count: must be below 2**63"),
    ],
)
def test_command_lines(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=at_least(1).integer)
    parser.add_argument("--fps", type=above(0).number)
    assert parser.parse_args(["--count=3", "--fps=2"]) == argparse.Namespace(count=3, fps=2.0)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--count={text}"])
    assert message in capsys.readouterr().err
    for bad in ("nan", "inf", "0"):
        with pytest.raises(SystemExit):
            parser.parse_args([f"--fps={bad}"])


Make = Callable[..., Any]
GRID = TokenGrid(2, 8, 8)


def paradigm(name: str, token_type: str) -> Make:
    """Builds a small paradigm with more options."""
    spec = TokenSpec(token_type, 5, (4, 8, 8), True)  # type: ignore[arg-type]
    size = Size(dim=12, depth=3, num_heads=1, head_dim=8, head_depth=1)
    cls = registry.get("paradigms", name)
    return _with_signature(cls, lambda **o: cls(spec, GRID, ContextSpec(), size, **o))


def needing(cls: type[Any], **required: Any) -> Make:
    """Builds the class with what it cannot do without, and more options."""
    return _with_signature(cls, lambda **options: cls(**{**required, **options}))


def _with_signature(cls: type[Any], make: Make) -> Make:
    make.__wrapped__ = cls  # type: ignore[attr-defined]
    return make


PROTOCOL = {"name": "p", "summary": "s", "task": "generation", "metrics": ("psnr",)}
TOKEN_TYPES: tuple[TokenType, ...] = get_args(TokenType)
SAMPLING = {
    f"sampling of {name}, {kind}": registry.get("paradigms", name).options_for(kind)
    for name in registry.names("paradigms")
    for kind in TOKEN_TYPES
}
OWNERS: dict[str, Make] = {
    **{owner: needing(cls) for owner, cls in SAMPLING.items()},
    "Size": needing(Size, dim=8, depth=1, num_heads=1),
    "Backbone": needing(Backbone),
    "DiffusionOptions": needing(DiffusionOptions),
    "OptimizerConfig": needing(OptimizerConfig, lr=1.0),
    "Adversarial": needing(Adversarial),
    "PatchDiscriminator": needing(PatchDiscriminator),
    "Reconstruction": needing(Reconstruction),
    "Perceptual": needing(Perceptual),
    "Images": needing(Images),
    "ClipSpec": needing(ClipSpec),
    "Protocol": needing(Protocol, **PROTOCOL),
    "Sprites": needing(Sprites),
    "VideoFolder": needing(registry.get("datasets", "video_folder"), root="nowhere"),
    "VideoManifest": needing(registry.get("datasets", "video_manifest"), path="nowhere.csv"),
    "Windows": needing(registry.get("datasets", "windows"), dataset=Sprites(1), num_frames=2),
    "VideoDataModule": needing(VideoDataModule, train=Sprites(1), val=Sprites(1)),
    "WordTextEncoder": needing(WordTextEncoder, dim=8),
    "SampleVideos": needing(SampleVideos, every_n_steps=1),
    "EMAWeightAveraging": needing(EMAWeightAveraging),
    "VAE3D": needing(registry.get("tokenizers", "vae3d")),
    "MagvitFSQ": needing(registry.get("tokenizers", "magvit_fsq")),
    "MagvitCodebook": needing(registry.get("tokenizers", "magvit_codebook"), bottleneck="vq"),
    "CosmosDV": needing(registry.get("tokenizers", "cosmos_dv")),
    "Larp": needing(registry.get("tokenizers", "larp")),
    "OmniTokenizer": needing(registry.get("tokenizers", "omnitokenizer")),
    "OpenMagvit2": needing(registry.get("tokenizers", "open_magvit2")),
    "OpenSoraPlan": needing(registry.get("tokenizers", "open_sora_plan")),
    "Tats": needing(registry.get("tokenizers", "tats")),
    "nova": paradigm("nova", "continuous"),
    "next_block": paradigm("next_block", "discrete"),
    "next_token": paradigm("next_token", "discrete"),
    "masked": paradigm("masked", "discrete"),
}
SKIPPED = {
    ("EMAWeightAveraging", "device"),
    ("Adversarial", "channels"),
    ("Adversarial", "num_layers"),
}
"""No number that is counted or measured; and what the discriminator checks."""


def numeric_options() -> list[tuple[str, str, Any]]:
    """(owner, option, annotation) of every option that is a number, may be one, or is a tuple of such."""
    found = []
    for owner, make in OWNERS.items():
        cls: Any = make.__wrapped__  # type: ignore[attr-defined]
        for name, parameter in parameters(cls).items():
            hint = _number_in(parameter.annotation)
            if hint is not None and (owner, name) not in SKIPPED:
                found.append((owner, name, hint))
    return found


def _number_in(hint: Any) -> Any:
    """The first part of an annotation that is a kind of number, or a tuple that holds nothing else."""
    if hint in (int, float):
        return hint
    if get_origin(hint) is tuple:
        return hint if all(_number_in(part) or part is ... for part in get_args(hint)) else None
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    return next((found for found in map(_number_in, parts) if found), None)


def _filled(hint: Any, value: float) -> Any:
    """A value of an annotation in which every number is `value`."""
    if get_origin(hint) is tuple:
        return tuple(_filled(part, value) for part in get_args(hint) if part is not ...)
    return value if math.isinf(value) or math.isnan(value) else hint(value)


def _leaf(hint: Any) -> type:
    return _leaf(get_args(hint)[0]) if get_origin(hint) is tuple else hint


@pytest.mark.parametrize(("owner", "option", "hint"), numeric_options())
def test_every_numeric_option_has_a_range(owner: str, option: str, hint: Any) -> None:
    """Whatever is counted or measured is not below 0, but for scales of guidance; nothing is endless."""
    options = {f.name: f for f in dataclasses.fields(SAMPLING[owner])} if owner in SAMPLING else {}
    signed = option in options and range_of(options[option]) == FINITE
    values: list[Any] = [] if signed else [-1]
    values += [*NOT_FINITE] if _leaf(hint) is float else [LIMIT]
    for value in values:
        with pytest.raises(UserError, match=f"{option} must be "):
            OWNERS[owner](**{option: _filled(hint, value)})


def test_ranges_do_not_refuse_what_means_something() -> None:
    Size(dim=8, depth=1, num_heads=2, head_depth=0)
    CategoricalSampling(guidance=-1.0, temperature=0.0, top_p=1.0)
    DiffusionSampling(guidance_trunc=1001.0)
    OptimizerConfig(lr=1e30, warmup_steps=0, weight_decay=0, betas=(0.0, 0.0))
    for share in (0.0, 1.0):
        paradigm("nova", "discrete")(condition_dropout=share)
    Adversarial(weight=0, start_step=0)
    Sprites(1, second=1.0, textured=0.0)
    VideoDataModule(Sprites(1), Sprites(1), batch_size=1, num_workers=0)


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(UserError, match=r"size\.dim must be a multiple of size\.num_heads, not 9"):
        Size(dim=9, depth=1, num_heads=2)
