"""RAFT's names and padding, and when a video counts as moving or still."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arvid.contracts import UserError
from arvid.suites.vbench.flow import (
    RaftFlow,
    is_dynamic,
    is_static,
    load_raft,
    top_speed,
    torchvision_names,
)
from arvid.suites.vbench.frames import for_raft

from torchvision.models.optical_flow import raft_large  # isort: skip  # after arvid, which mends its import


@pytest.fixture(scope="module")
def raft() -> nn.Module:
    torch.manual_seed(0)
    return raft_large(weights=None).eval()


def authors_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of raft-things.pth, written down by hand for what torchvision calls otherwise."""
    rules = (
        ("feature_encoder.", "fnet."),
        ("context_encoder.", "cnet."),
        ("net.convnormrelu.0.", "net.conv1."),
        ("net.convnormrelu.1.", "net.norm1."),
        ("net.conv.", "net.conv2."),
        *((f".convnormrelu{i}.0.", f".conv{i}.") for i in (1, 2)),
        *((f".convnormrelu{i}.1.", f".norm{i}.") for i in (1, 2)),
        *((f"motion_encoder.convcorr{i}.0.", f"encoder.convc{i}.") for i in (1, 2)),
        *((f"motion_encoder.convflow{i}.0.", f"encoder.convf{i}.") for i in (1, 2)),
        ("motion_encoder.conv.0.", "encoder.conv."),
        ("mask_predictor.convrelu.0.", "update_block.mask.0."),
        ("mask_predictor.conv.", "update_block.mask.2."),
    )
    named = {}
    for name, value in state.items():
        for ours, theirs in rules:
            name = name.replace(ours, theirs)
        name = re.sub(r"recurrent_block\.convgru(\d)\.conv(\w)", r"gru.conv\2\1", name)
        named[f"module.{name}"] = value
        if ".downsample.1." in name:  # the authors' modules have it twice
            named[f"module.{name.replace('downsample.1', 'norm3')}"] = value
    return named


def test_names_of_the_authors_become_those_of_torchvision(raft: nn.Module) -> None:
    state = raft.state_dict()
    theirs = authors_names(state)
    for name in (
        "module.fnet.layer2.0.downsample.0.weight",
        "module.cnet.layer3.0.norm3.running_var",
        "module.update_block.gru.convz1.weight",
        "module.update_block.encoder.convf2.bias",
        "module.update_block.flow_head.conv2.weight",
    ):
        assert name in theirs
    assert len(theirs) == 179  # as raft-things.pth, the norm's counters included
    found = torchvision_names(theirs)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert torchvision_names(state).keys() == state.keys()


def test_raft_file_gives_its_flow(raft: nn.Module, tmp_path: Path) -> None:
    torch.save(authors_names(raft.state_dict()), tmp_path / "raft-things.pth")
    loaded = load_raft(tmp_path / "raft-things.pth")
    assert sum(p.numel() for p in loaded.parameters()) == 5_257_536
    a, b = np.random.default_rng(0).integers(0, 256, (2, 129, 128, 3), dtype=np.uint8)
    found = RaftFlow(loaded)(a, b)
    assert found.shape == (2, 136, 128)
    with torch.no_grad():
        expected = raft(for_raft(a), for_raft(b), num_flow_updates=20)[-1][0]
    torch.testing.assert_close(found, expected)


def test_other_files_and_small_frames_are_refused(raft: nn.Module, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "a.pth")
    torch.save([1], tmp_path / "b.pth")
    (tmp_path / "c.pth").write_bytes(b"<html>")
    for name in "abc":
        with pytest.raises(UserError, match=f"{name}.pth does not hold the weights of RAFT"):
            load_raft(tmp_path / f"{name}.pth")
    small = np.zeros((64, 200, 3), dtype=np.uint8)
    with pytest.raises(UserError, match="at least 128x128 pixels, not 200x64"):
        RaftFlow(raft)(small, small)


def test_frames_are_padded_evenly_with_their_border() -> None:
    rows, columns = np.arange(13, dtype=np.uint8), np.arange(9, dtype=np.uint8)  # 13 high, 9 wide
    frame = np.stack(np.broadcast_arrays(rows[:, None], columns[None], 0), axis=-1)
    padded = (for_raft(frame)[0] + 1) * 255 / 2
    assert padded.shape == (3, 16, 16)
    assert padded[0, :, 0].tolist() == pytest.approx([0, *range(13), 12, 12], abs=1e-3)
    assert padded[1, 0].tolist() == pytest.approx([0] * 3 + [*range(9)] + [8] * 4, abs=1e-3)


def test_top_speed_is_the_mean_of_the_fastest() -> None:
    flow = torch.zeros(2, 10, 10)
    flow[:, 0, :5] = torch.tensor([3.0, 4.0])[:, None] * torch.arange(1, 6)  # 5, 10, 15, 20, 25
    assert top_speed(flow, 0.05) == pytest.approx(15)
    assert top_speed(flow, 0.02) == pytest.approx(22.5)


@pytest.mark.parametrize(
    ("fast", "num_frames", "expected"),
    [
        (4, 16, True),  # 4 of 15 pairs are asked for
        (3, 16, False),
        (0, 1, False),  # no pair
        (0, 2, True),  # round(0.5) = 0 pairs are asked for
        (0, 3, False),  # round(0.75) = 1
        (2, 10, True),  # round(2.5) = 2, to even
    ],
)
def test_dynamic_needs_a_quarter_of_the_pairs(fast: int, num_frames: int, expected: bool) -> None:
    speeds = [6.1 * 128 / 256] * fast + [6.0 * 128 / 256] * (num_frames - 1 - fast)
    assert is_dynamic(speeds, num_frames, 128) is expected


@pytest.mark.parametrize(
    ("fast", "end", "expected"),
    [
        (2, 12.0, True),  # of 16 frames 2 pairs may be fast, and the ends 2 * 2 thresholds apart
        (3, 0.0, False),
        (0, 12.1, False),
    ],
)
def test_static_allows_an_eighth_of_the_pairs(fast: int, end: float, expected: bool) -> None:
    speeds = [3.1] * fast + [3.0] * (15 - fast)
    assert is_static(speeds, (0.0, end), 16, 256) is expected
