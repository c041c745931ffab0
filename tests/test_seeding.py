"""Every test begins from the same seeded state, whatever ran before it and whichever fixtures it shares."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parent

SUITE = """
    import os, random
    import numpy as np
    import pytest
    import torch

    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seeded():
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        return draws()

    def state():
        return (
            torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
            os.environ.get("PL_GLOBAL_SEED"),
        )

    AT_FIRST = state()

    @pytest.fixture(scope="module")
    def shared():
        torch.set_default_dtype(torch.float64)
        return draws()

    @pytest.fixture(scope="module")
    def drawn_late():
        return draws()

    @pytest.mark.parametrize("index", range(2))
    def test_spoils_everything(shared, index):
        assert state() == AT_FIRST
        assert draws() == seeded()
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("medium")
        os.environ["PL_GLOBAL_SEED"] = "7"

    def test_a_shared_fixture_is_seeded(shared, drawn_late):
        torch.set_default_dtype(torch.float64)  # in which the fixture drew
        assert drawn_late[:2] == shared[:2] == seeded()[:2]
        torch.manual_seed(0)
        assert shared[2] == torch.rand(1).item()

    def test_a_shared_fixture_leaves_the_test_alone(request):
        first = draws()
        assert state() == AT_FIRST
        request.getfixturevalue("drawn_late")
        second = draws()
        assert (first, second) == (seeded(), draws())
"""


def test_every_test_begins_from_the_same_state(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((TESTS / "conftest.py").read_text())
    pytester.makepyfile(SUITE)
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=4)


UNSEEDED = re.compile(r"default_rng\(\)|\bRandom\(\)|SystemRandom|urandom|uuid|secrets|\.seed\(\)")


def test_no_test_draws_from_the_clock_or_the_system() -> None:
    found = [
        f"{path.relative_to(TESTS)}: {line.strip()}"
        for path in sorted(TESTS.rglob("*.py"))
        for line in path.read_text().splitlines()
        if UNSEEDED.search(line) and not line.startswith("UNSEEDED")
    ]
    assert not found
