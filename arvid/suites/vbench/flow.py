"""Optical flow for dynamic degree and the static filter: torchvision's RAFT (arXiv:2003.12039), 20 iterations.

VBench uses the authors' `raft-things.pth`. torchvision's file `raft_large_C_T_V1-22a6c225.pth` has the same weights
under other names; both can be loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.models.optical_flow import raft_large

from arvid.contracts import UserError
from arvid.suites.vbench.frames import for_raft

ITERATIONS = 20
MIN_SIDE = 128
"""Smallest side in pixels. In smaller frames RAFT's coarsest correlation level is one cell, with NaN coordinates."""

Frame = UInt8[np.ndarray, "h w 3"]
Flow = Callable[[Frame, Frame], Float[Tensor, "2 h w"]]
"""Displacement in pixels (x, y) from one frame to another, at the size padded to multiples of 8."""

_RENAMES = (  # names of princeton-vl/RAFT -> torchvision's names; the order matters
    (r"^module\.", ""),
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"_encoder\.conv1\.", "_encoder.convnormrelu.0."),
    (r"_encoder\.norm1\.", "_encoder.convnormrelu.1."),
    (r"_encoder\.conv2\.", "_encoder.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.encoder\.convc(\d)\.", r"update_block.motion_encoder.convcorr\1.0."),
    (r"^update_block\.encoder\.convf(\d)\.", r"update_block.motion_encoder.convflow\1.0."),
    (r"^update_block\.gru\.conv(\w)(\d)\.", r"update_block.recurrent_block.convgru\2.conv\1."),
    (r"^update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"^update_block\.mask\.2\.", "mask_predictor.conv."),
)
_SHARED = re.compile(r"layer\d\.\d\.norm3\.")
"""Duplicates to skip: in the authors' modules the norm of a shortcut has two names, `norm3` and `downsample.1`."""


class RaftFlow:
    """Optical flow by a RAFT network. Raises UserError for frames with a side below 128 pixels."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, first: Frame, second: Frame) -> Float[Tensor, "2 h w"]:
        if min(first.shape[:2]) < MIN_SIDE:
            raise UserError(
                f"RAFT needs frames of at least {MIN_SIDE}x{MIN_SIDE} pixels, "
                f"not {first.shape[1]}x{first.shape[0]}."
            )
        device = next(self.network.parameters()).device
        pair = (for_raft(frame).to(device) for frame in (first, second))
        return self.network(*pair, num_flow_updates=ITERATIONS)[-1][0]


def load_raft(path: Path) -> nn.Module:
    """RAFT with weights from the authors' or torchvision's file. Raises UserError if they do not fit."""
    network = raft_large(weights=None, progress=False)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(torchvision_names(state))
    except (
        RuntimeError,
        AttributeError,
        EOFError,
        OSError,
        ValueError,
        UnpicklingError,
    ) as error:
        raise UserError(f"{path} does not hold the weights of RAFT (large): {error}") from error
    return network


def torchvision_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of princeton-vl/RAFT to torchvision's names. Torchvision's own names do not change."""
    renamed = {}
    for name, value in state.items():
        if _SHARED.search(name):
            continue
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def top_speed(flow: Float[Tensor, "2 h w"], share: float) -> float:
    """Mean length in pixels of the longest `share` (0..1) of the flow vectors."""
    speed = flow.square().sum(0).sqrt().flatten()
    return float(speed.topk(int(len(speed) * share)).values.mean())


def is_dynamic(speeds: Iterable[float], num_frames: int, shorter_side: int) -> bool:
    """Whether enough pairs of neighbouring frames move: VBench's `dynamic_degree`.

    Args:
        speeds: `top_speed` (5 %) of each pair. An iterator is read only until the result is known.
        num_frames: of the clip, sampled at about 8 per second.
        shorter_side: of the frames, in pixels.

    As in VBench, the required number of moving pairs is rounded with Python's `round` (half to even) and compared after
    each pair. With two frames it is 0: any two frames are dynamic, a single frame is not.
    """
    threshold, wanted = 6.0 * shorter_side / 256, round(4 * num_frames / 16)
    moving = 0
    for speed in speeds:
        moving += speed > threshold
        if moving >= wanted:  # inside the loop as in VBench: with wanted = 0 the first pair decides
            return True
    return False


def is_static(
    speeds: Iterable[float], ends: Iterable[float], num_frames: int, shorter_side: int
) -> bool:
    """Whether there is almost no motion: VBench's `static_filter`.

    Args:
        speeds: `top_speed` (2 %) of each pair of neighbouring frames, at the file's rate.
        ends: `top_speed` from the first frame to the last, and from the last to the first.
        num_frames: of the clip.
        shorter_side: of the frames, in pixels.
    """
    threshold, allowed = 3.0 * shorter_side / 256, round(2 * num_frames / 16)
    moving = 0
    for speed in speeds:
        moving += speed > threshold
        if moving > allowed:
            return False
    return all(speed <= threshold * allowed * 2 for speed in ends)
