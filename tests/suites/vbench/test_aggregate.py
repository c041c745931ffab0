"""The totals against the leaderboard, and what a missing dimension does to them."""

from __future__ import annotations

import pytest

from arvid.suites.vbench.aggregate import DIMENSIONS, aggregate

# Raw scores in percent, in the order of DIMENSIONS, and quality, semantic and total recomputed from them. Published:
# the same, but for CogVideoX-5B's quality (82.75).
LEADERBOARD = {
    "LaVie": (
        "91.41 97.47 98.30 96.38 49.72 54.94 61.90 91.82 33.32 96.80 86.39 34.09 52.69 23.56 25.93 26.41",
        (78.78, 70.31, 77.08),
    ),
    "VideoCrafter-2.0": (
        "96.85 98.22 98.41 97.73 42.50 63.13 67.22 92.55 40.66 95.00 92.92 35.86 55.29 25.13 25.84 28.23",
        (82.20, 73.42, 80.44),
    ),
    "CogVideoX-5B": (
        "96.23 96.52 98.66 96.92 70.97 61.98 62.90 85.23 62.11 99.40 82.81 66.35 53.20 24.91 25.38 27.59",
        (82.76, 77.04, 81.61),
    ),
    "CogVideoX-1.5": (
        "96.87 97.35 98.88 98.31 50.93 62.79 65.02 87.47 69.65 97.20 87.55 80.25 52.91 24.89 25.19 27.30",
        (82.78, 79.76, 82.17),
    ),
}


def leaderboard(model: str) -> dict[str, float]:
    values = [float(value) / 100 for value in LEADERBOARD[model][0].split()]
    return dict(zip(DIMENSIONS, values, strict=True))


@pytest.mark.parametrize("model", LEADERBOARD)
def test_leaderboard_rows_come_out(model: str) -> None:
    totals = aggregate(leaderboard(model))
    found = [100 * value for value in (*totals.groups.values(), totals.total)]
    assert found == pytest.approx(LEADERBOARD[model][1], abs=0.01)
    assert totals.complete


def test_a_missing_dimension_counts_as_raw_zero_and_is_named() -> None:
    scores = leaderboard("LaVie")
    whole = aggregate(scores)
    del scores["motion_smoothness"]
    lacking = aggregate(scores)
    assert lacking.missing == ("motion_smoothness",)
    assert not lacking.complete
    zero = aggregate(scores | {"motion_smoothness": 0.0})
    assert (lacking.groups, lacking.total) == (zero.groups, zero.total)
    assert lacking.groups["semantic"] == whole.groups["semantic"]
    # by hand: from (0.9638 - 0.706) to (0 - 0.706), over a range of 0.2915 and weights of 6.5
    assert whole.groups["quality"] - lacking.groups["quality"] == pytest.approx(
        0.9638 / 0.2915 / 6.5
    )


def test_nothing_is_clipped_and_unknown_names_are_refused() -> None:
    best = aggregate(dict.fromkeys(DIMENSIONS, 1.0))
    assert best.groups["semantic"] > 1
    with pytest.raises(ValueError, match="not dimensions of VBench: sharpness"):
        aggregate({"sharpness": 1.0})
