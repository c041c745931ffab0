"""Sampling: seeds, names, going on, sharding."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from arvid.data.video import read_video
from arvid.suites.vbench.aggregate import DIMENSIONS
from arvid.suites.vbench.sampling import sample_suite, take_seed
from arvid.suites.vbench.suite import Prompt, load_suite, takes


class Painter:
    """One colour per text and seed; notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def __call__(self, text: str, seed: int) -> np.ndarray:
        self.asked.append((text, seed))
        return np.full((2, 16, 16, 3), seed % 256, dtype=np.uint8)


def test_seeds_are_distinct_and_depend_on_prompt_and_index_alone(shared: Path) -> None:
    suite = load_suite(shared / "prompts/vbench/VBench_full_info.json")
    everything = takes(suite, DIMENSIONS)
    seeds = {take.file: take_seed(take) for take in everything}
    assert len(set(seeds.values())) == len(everything)
    assert max(seeds.values()) < 2**63
    assert all(take_seed(take) == seeds[take.file] for take in takes(suite, ["scene"]))
    assert take_seed(everything[0], seed=1) != take_seed(everything[0])


def test_shards_together_draw_what_one_process_draws(
    suite: tuple[Prompt, ...], tmp_path: Path
) -> None:
    wanted, alone, together = takes(suite, DIMENSIONS), Painter(), Painter()
    assert sample_suite(wanted, alone, tmp_path / "one", progress=False) == 40
    for rank in range(3):
        sample_suite(wanted, together, tmp_path / "three", shard=(rank, 3), progress=False)
    assert sorted(alone.asked) == sorted(together.asked)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(take.file for take in wanted)
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()


def test_what_is_there_and_readable_is_not_drawn_again(
    suite: tuple[Prompt, ...], tmp_path: Path
) -> None:
    wanted, painter = takes(suite, ["scene", "color"]), Painter()
    sample_suite(wanted, painter, tmp_path, progress=False)
    (tmp_path / "alley-1.mp4").write_bytes(b"broken")
    (tmp_path / "alley-3.mp4").unlink()
    painter.asked.clear()
    assert sample_suite(wanted, painter, tmp_path, progress=False) == 2
    assert painter.asked == [("alley", take_seed(wanted[i])) for i in (1, 3)]
    assert read_video(tmp_path / "alley-1.mp4").fps == 8


def test_rewritten_prompts_reach_the_model_and_not_the_names(
    suite: tuple[Prompt, ...], tmp_path: Path
) -> None:
    wanted, painter = takes(suite, ["scene"]), Painter()
    sample_suite(wanted, painter, tmp_path, texts={"alley": "a narrow alley"}, progress=False)
    assert {text for text, _ in painter.asked} == {"a narrow alley"}
    assert (tmp_path / "alley-0.mp4").is_file()
    assert [seed for _, seed in painter.asked] == [take_seed(take) for take in wanted]
