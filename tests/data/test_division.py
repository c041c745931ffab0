"""Dividing the clips of a step among processes, and numbers that cannot be divided."""

from __future__ import annotations

from itertools import islice

import pytest

from arvid.contracts import UserError
from arvid.data.datamodule import PartSampler, StepSampler
from arvid.data.division import Division, divide


@pytest.mark.parametrize(
    ("clips", "batch", "processes", "expected"),
    [
        (8, 8, 1, Division(8, 1, 1)),
        (8, 32, 1, Division(8, 1, 1)),
        (8, 4, 1, Division(4, 2, 1)),
        (8, 4, 2, Division(4, 1, 1)),
        (8, 8, 2, Division(4, 1, 2)),
        (8, 4, 8, Division(1, 1, 4)),
        (24, 8, 2, Division(4, 3, 2)),
        (384, 3, 128, Division(3, 1, 1)),
        (384, 3, 4, Division(3, 32, 1)),
        (256, 4, 1, Division(4, 64, 1)),
        (10, 8, 1, Division(5, 2, 1)),
    ],
)
def test_a_step_has_its_clips_on_any_number_of_processes(
    clips: int, batch: int, processes: int, expected: Division
) -> None:
    found = divide(clips, batch, processes)
    assert found == expected
    assert found.batch_size * found.accumulate * processes == clips


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((8, 8, 3), r"3 processes cannot share the 8 clips.*processes: 1, 2, 4, 8"),
        ((3, 3, 2), r"2 processes cannot share the 3 clips.*processes: 1, 3"),
    ],
)
def test_what_cannot_be_divided_is_said_with_what_can(
    given: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        divide(*given)


@pytest.mark.parametrize("processes", [1, 2, 3, 6, 12])
def test_a_step_has_the_same_clips_whatever_the_number_of_processes(processes: int) -> None:
    alone = list(islice(StepSampler(30, 12, seed=3), 4))
    division = divide(12, 4, processes)
    ranks = [
        list(
            islice(
                StepSampler(30, division.batch_size, seed=3, rank=rank, world_size=processes),
                4 * division.accumulate,
            )
        )
        for rank in range(processes)
    ]
    batches = [clips for number in zip(*ranks, strict=True) for clips in number]
    seen = [clip for clips in batches for clip in clips]
    assert [seen[i : i + 12] for i in range(0, 48, 12)] == alone


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_a_validation_sees_each_clip_once(processes: int) -> None:
    """Eleven clips in batches of four: the last has three, fewer than five processes."""
    samplers = [PartSampler(11, 4, rank=r, world_size=processes) for r in range(processes)]
    assert {len(list(sampler)) for sampler in samplers} == {3}
    counted = [
        clip
        for batch in range(3)
        for sampler in samplers
        for clip in list(sampler)[batch]
        if sampler.part(batch).counted
    ]
    assert counted == list(range(11))
