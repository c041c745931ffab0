"""Power laws over sizes."""

from __future__ import annotations

import numpy as np
import pytest

from arvid.contracts import UserError
from arvid.experiments.scaling import fit_power_law


def test_a_known_law_is_found_with_an_interval_around_it() -> None:
    generator = np.random.default_rng(0)
    points = {
        c: 3 * c**-0.2 * np.exp(0.02 * generator.standard_normal(3)) for c in (1e9, 1e10, 1e11)
    }
    law = fit_power_law({c: [float(v) for v in values] for c, values in points.items()})
    assert law.exponent.value == pytest.approx(-0.2, abs=0.02)
    assert law.exponent.low < -0.2 < law.exponent.high < -0.1
    assert law.at(1e10) == pytest.approx(3 * 1e10**-0.2, rel=0.05)


def test_too_few_sizes_and_impossible_values_are_refused() -> None:
    with pytest.raises(UserError, match="at least three sizes"):
        fit_power_law({1e9: [1.0], 1e10: [0.5]})
    with pytest.raises(UserError, match="positive values"):
        fit_power_law({1e9: [1.0], 1e10: [0.5], 1e11: [-0.1]})
