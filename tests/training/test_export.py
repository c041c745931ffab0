"""Tokenizers in files: they come back the same, and what does not fit is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from arvid.contracts import UserError, VideoTokenizer
from arvid.data.sprites import Sprites
from arvid.nn.causal_conv import Backbone
from arvid.tokenizers.magvit_fsq import MagvitFSQ
from arvid.tokenizers.vae3d import VAE3D
from arvid.training.export import (
    describe,
    embedded,
    fingerprint,
    load_tokenizer,
    save_tokenizer,
)
from arvid.training.tokenizer_module import psnr

TINY = Backbone(
    base=4, multipliers=(1, 2), strides=((2, 2, 2),), num_units=1, num_mid_units=0, num_groups=2
)
BOTH = pytest.mark.parametrize(
    "make",
    [
        lambda: VAE3D(backbone=TINY, latent_channels=2, kl_weight=0.5),
        lambda: MagvitFSQ(backbone=TINY, levels=(5, 7)),
    ],
    ids=["vae3d", "magvit_fsq"],
)
Make = Callable[[], VideoTokenizer]


def tiny() -> MagvitFSQ:
    return MagvitFSQ(backbone=TINY, levels=(5, 7))


@BOTH
def test_round_trip(make: Make, tmp_path: Path) -> None:
    tokenizer = make().eval().requires_grad_(False)  # frozen weights may have other kernels
    path = tmp_path / "t.safetensors"
    save_tokenizer(tokenizer, path, {"steps": 3})
    loaded = load_tokenizer(path)
    assert type(loaded) is type(tokenizer)
    assert describe(loaded) == describe(tokenizer)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["record"]) == {"steps": 3}
    assert fingerprint(loaded) == fingerprint(tokenizer)
    video = torch.rand(1, 3, 5, 8, 8) * 2 - 1
    with torch.no_grad():
        assert torch.equal(loaded.encode(video), tokenizer.encode(video))


@BOTH
def test_half_precision_file(make: Make, tmp_path: Path) -> None:
    tokenizer = make()
    save_tokenizer(tokenizer, tmp_path / "full.safetensors", {})
    save_tokenizer(tokenizer, tmp_path / "half.safetensors", {}, half=True)
    loaded = load_tokenizer(tmp_path / "half.safetensors")
    for name, value in tokenizer.state_dict().items():
        assert loaded.state_dict()[name].dtype == value.dtype
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    stored = load_file(tmp_path / "half.safetensors")
    assert all(v.dtype == torch.float16 for v in stored.values() if v.is_floating_point())


def test_fingerprint_tells_weights_and_options_apart() -> None:
    torch.manual_seed(1)
    first = tiny()
    torch.manual_seed(1)
    same = tiny()
    torch.manual_seed(1)
    other = VAE3D(backbone=TINY, latent_channels=2)
    another = VAE3D(backbone=TINY, latent_channels=2, kl_weight=0.5)
    another.load_state_dict(other.state_dict())
    assert fingerprint(first) == fingerprint(same)
    assert len({fingerprint(t) for t in (first, other, another, tiny())}) == 4


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
    """Change a tokenizer file's tensors or metadata in place."""
    tokenizer = tiny()
    tensors = {k: v.contiguous() for k, v in tokenizer.state_dict().items()}
    metadata = {"format": "arvid tokenizer 1", "tokenizer": json.dumps(describe(tokenizer))}
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def _drop(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    del tensors["encoder.layers.0.conv.bias"]
    tensors["stranger"] = torch.zeros(1)
    tensors["decoder.layers.0.conv.weight"] = torch.zeros(2, 2)


def _rename(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    metadata["tokenizer"] = json.dumps({"name": "magvit_fsk", "hyperparameters": {}})


def _foreign(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    metadata["tokenizer"] = json.dumps({"name": "torch.nn.Linear", "hyperparameters": {}})


def _option(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    metadata["tokenizer"] = json.dumps({"name": "magvit_fsq", "hyperparameters": {"depth": 3}})


def _format(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    metadata.clear()


def _nameless(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    metadata["tokenizer"] = "[]"


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (
            _drop,
            [
                "missing encoder.layers.0.conv.bias",
                "unexpected stranger",
                r"decoder.layers.0.conv.weight is \(2, 2\), not \(8, 2, 3, 3, 3\)",
            ],
        ),
        (_rename, ["Did you mean 'magvit_fsq'"]),
        (
            _foreign,
            ["torch.nn.Linear", "not a tokenizer that arvid or an installed package registers"],
        ),
        (_option, ["depth"]),
        (_format, ["not a tokenizer file"]),
        (_nameless, ["names no tokenizer"]),
    ],
)
def test_unfit_files(
    change: Callable[[dict[str, torch.Tensor], dict[str, str]], None],
    reasons: list[str],
    tmp_path: Path,
) -> None:
    path = tmp_path / "bad.safetensors"
    rewrite(path, change)
    for reason in ["bad.safetensors", *reasons]:
        with pytest.raises(UserError, match=reason):
            load_tokenizer(path)


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt"])
def test_files_that_are_something_else(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"not weights at all" * 10)
    with pytest.raises(UserError, match=name):
        load_tokenizer(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match=name):
        load_tokenizer(path)


def test_a_checkpoint_with_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "code.ckpt"
    torch.save({"tokenizer": tiny()}, path)
    with pytest.raises(UserError, match="read safely"):
        load_tokenizer(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer file 'sprites-vea3d'"):
        load_tokenizer("sprites-vea3d")
    with pytest.raises(UserError, match="a folder"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_no_file_can_name(tmp_path: Path) -> None:
    class Local(MagvitFSQ):
        pass

    with pytest.raises(UserError, match="not a registered tokenizer"):
        save_tokenizer(Local(backbone=TINY, levels=(5, 7)), tmp_path / "t.safetensors", {})


@pytest.mark.parametrize("name", ["sprites-vae3d", "sprites-magvit_fsq"])
def test_embedded_tokenizers(name: str) -> None:
    path = embedded()[name]
    assert path.stat().st_size < 1_000_000
    record = json.loads(path.with_suffix(".json").read_text())
    assert {"command", "steps", "seed", "date", "hardware"} <= record.keys()
    tokenizer = load_tokenizer(name)
    clips = [torch.from_numpy(clip.video) for clip in Sprites(32, seed=1)]
    video = torch.stack(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    with torch.no_grad():
        reconstruction = tokenizer.decode(tokenizer.encode(video))
    assert psnr(reconstruction, video).mean().item() == pytest.approx(
        record["psnr_unseen"], abs=1.5
    )
