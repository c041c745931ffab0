"""Curves over autoregressive steps: their numbers, their reference lines, and their plot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from arvid.contracts import TokenSpec, UserError
from arvid.metrics.paired import MAX_PSNR, Psnr
from arvid.metrics.rollout import LAST_FRAME, Rollout, repeat_last_given, step_curve
from arvid.report.rollout import rollout_plot

SPEC = TokenSpec("discrete", 16, (4, 8, 8), causal=True)


def clips(num: int = 3, num_frames: int = 13) -> Tensor:
    """Clips whose brightness rises by one with every frame, each from its own start."""
    start = torch.arange(num)[:, None] * 10
    levels = (start + torch.arange(num_frames)).byte()
    return levels[:, :, None, None, None].expand(-1, -1, 8, 8, 3).contiguous()


def test_curve_is_the_mean_over_a_steps_frames_with_the_error_over_clips() -> None:
    values = np.array([[1.0, 3.0, 5.0, 7.0], [3.0, 5.0, 5.0, 11.0]])
    curve = step_curve(values, 2)
    assert curve.mean == pytest.approx((3, 7))
    assert curve.standard_error == pytest.approx((1, 1))
    assert curve.num_clips == 2
    assert step_curve(values[:1], 4).standard_error is None
    with pytest.raises(UserError, match="4 predicted frames do not fill steps of 3"):
        step_curve(values, 3)


def test_last_given_frame_stands_still_after_the_given_ones() -> None:
    real = clips()
    still = repeat_last_given(real, 5)
    assert torch.equal(still[:, :5], real[:, :5])
    assert all(torch.equal(still[:, t], real[:, 4]) for t in range(5, 13))


def test_rollout_compares_the_lines_of_all_batches_step_by_step() -> None:
    rollout = Rollout(Psnr, spec=SPEC, given_frames=5)
    for real in (clips(2), clips(1)):
        drifting = real.clone()
        drifting[:, :5] = 255  # what was given counts for nothing
        drifting[:, 9:] += 20
        rollout.update(real, {"model": drifting, "reconstruction": real})
    curves = rollout.compute()
    assert list(curves) == ["model", "reconstruction", LAST_FRAME]
    assert curves["reconstruction"].mean == (MAX_PSNR, MAX_PSNR)
    off_by_20 = 20 * np.log10(255 / 20)
    assert curves["model"].mean == pytest.approx((MAX_PSNR, off_by_20), rel=1e-5)
    # Each frame is one level brighter than the one before it.
    levels = [[20 * np.log10(255 / k) for k in step] for step in ((1, 2, 3, 4), (5, 6, 7, 8))]
    assert curves[LAST_FRAME].mean == pytest.approx([np.mean(step) for step in levels], rel=1e-5)
    assert curves[LAST_FRAME].num_clips == 3


def test_misused_rollouts_say_so() -> None:
    with pytest.raises(UserError, match="at least one given frame"):
        Rollout(Psnr, spec=SPEC, given_frames=0)
    with pytest.raises(UserError, match="4 frames do not fit"):
        Rollout(Psnr, spec=SPEC, given_frames=4)
    rollout = Rollout(Psnr, spec=SPEC, given_frames=1)
    rollout.update(clips(), {"model": clips()})
    with pytest.raises(UserError, match="the same lines throughout"):
        rollout.update(clips(), {"another": clips()})
    ragged = Rollout(Psnr, spec=SPEC, given_frames=1)
    ragged.update(clips(num_frames=12), {"model": clips(num_frames=12)})
    with pytest.raises(UserError, match="11 predicted frames do not fill steps of 4"):
        ragged.compute()


def test_plot_has_a_panel_for_each_metric_and_names_its_lines() -> None:
    rollout = Rollout(Psnr, spec=SPEC, given_frames=1)
    rollout.update(clips(), {"model": clips().flip(0)})
    curves = rollout.compute()
    plot = rollout_plot({"PSNR (dB)": curves, "PSNR again": curves}, references=[LAST_FRAME])
    assert len(plot.panels) == 2
    for text in ("PSNR (dB)", "model", LAST_FRAME, "predicted latent frame"):
        assert text in plot.panels[0]
    assert plot == rollout_plot({"PSNR (dB)": curves, "PSNR again": curves}, [LAST_FRAME])
