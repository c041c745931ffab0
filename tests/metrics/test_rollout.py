"""Curves over autoregressive steps, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from arvid.contracts import UserError
from arvid.metrics.rollout import step_curve


def test_curve_is_the_mean_over_a_steps_frames_with_the_error_over_clips() -> None:
    values = np.array([[1.0, 3.0, 5.0, 7.0], [3.0, 5.0, 5.0, 11.0]])
    curve = step_curve(values, 2)
    assert curve.mean == pytest.approx((3, 7))
    assert curve.standard_error == pytest.approx((1, 1))
    assert (curve.num_clips, curve.frames_per_step) == (2, 2)
    assert step_curve(values[:1], 4).standard_error is None
    with pytest.raises(UserError, match="4 predicted frames do not fill steps of 3"):
        step_curve(values, 3)
