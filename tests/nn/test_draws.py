"""Random numbers of a batch do not depend on how many processes hold its clips."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from arvid.nn import draws
from arvid.nn.draws import Dropout, SharedStream, draw, draw_once, part_of, randn_like

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_shared() -> Iterator[None]:
    yield
    draws.share(None)


def numbers(clips: int) -> list[torch.Tensor]:
    """What a training draws for some clips, each with three frames of five numbers."""
    frames = torch.ones(clips * 3, 5)
    return [
        draw(torch.rand, [clips]),
        torch.tensor(draw_once(lambda: torch.rand(()).item())),
        randn_like(frames),
        randn_like(frames.expand(2, -1, -1), axis=1).transpose(0, 1),
        draw(lambda shape: torch.randint(7, shape), [clips, 2]),
        Dropout(0.4)(frames),
    ]


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_parts_of_a_batch_have_its_numbers(processes: int) -> None:
    torch.manual_seed(5)
    whole = numbers(7)
    for rank in range(processes):
        part = part_of(7, rank, processes)
        torch.manual_seed(5)
        draws.share(SharedStream(CPU), part)
        for mine, all_of_them in zip(numbers(part.count), whole, strict=True):
            if mine.ndim == 0:
                assert mine == all_of_them
                continue
            rows = len(all_of_them) // 7
            expected = all_of_them[part.start * rows : (part.start + part.count) * rows]
            assert torch.equal(mine, expected)


def test_other_draws_are_of_the_process_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    draws.share(SharedStream(CPU), part_of(4, 0, 2))
    draw(torch.rand, [2])
    assert torch.equal(torch.rand(3), expected)


def test_a_process_without_clips_draws_along_and_does_not_count() -> None:
    parts = [part_of(2, rank, 3) for rank in range(3)]
    assert [part.counted for part in parts] == [False, True, True]
    for part, expected in zip(parts, (0, 1, 1), strict=True):
        draws.share(SharedStream(CPU), part)
        assert draws.counted_clips(part.count) == expected
    draws.share(None)
    assert draws.counted_clips(4) == 4
