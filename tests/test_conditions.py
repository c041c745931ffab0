"""The table of conditions: values of clips, cutting, batches, names, flags, and data that lacks one."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from arvid import registry
from arvid.cli import main
from arvid.contracts import Clip, UserError
from arvid.data.collate import collate
from arvid.data.keyboard_sprites import KEYS, KeyboardSprites
from arvid.data.sprites import Sprites
from arvid.data.token_cache import encode_dataset
from arvid.data.token_shards import TokenShards
from arvid.data.windows import Windows
from arvid.nn.conditions import FIELDS, all_conditions, condition, of_clip, of_clips
from arvid.sampling.sample import Conditions, sample
from arvid.training.export import load_tokenizer
from arvid.training.generator_module import load_generator

DATA = KeyboardSprites(4, num_frames=9, size=32)
NAMES = DATA.value_names


def test_each_condition_is_registered_by_its_name() -> None:
    for name in registry.names("conditions"):
        assert condition(name).name == name
    assert [kind.name for kind in all_conditions()][: len(FIELDS)] == list(FIELDS)


def test_what_a_clip_does_not_say_is_unknown() -> None:
    values = of_clip(Clip(video=np.zeros((1, 8, 8, 3), np.uint8)))
    assert values["label"] == -1
    assert np.isnan(values["motion"])
    assert sorted(values) == sorted(FIELDS)
    assert sorted(of_clip(DATA[0])) == sorted((*FIELDS, "actions", "action_vectors"))


def test_only_values_per_frame_are_cut_and_what_is_behind_the_end_is_unknown() -> None:
    actions = condition("actions").of_clip(DATA[1])
    np.testing.assert_array_equal(condition("actions").cut(actions, 2, 3), actions[2:5])
    assert condition("actions").cut(actions, 7, 4).tolist() == [*actions[7:], -1, -1]
    vectors = condition("action_vectors").cut(np.ones((9, 2)), 8, 2)
    assert np.isnan(vectors[1]).all()
    motion = np.array(3.0)
    assert condition("motion").cut(motion, 5, 2) is motion


def test_windows_have_the_actions_of_their_frames() -> None:
    window = Windows(DATA, num_frames=5, seed=3)[2]
    start = int(window.name.rpartition("@")[2])
    assert window.conditions["actions"].tolist() == list(DATA[2].conditions["actions"][start:][:5])
    assert Windows(DATA, num_frames=5).value_names == NAMES


def test_shards_keep_the_conditions_and_their_names(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("sprites-vae3d")
    encode_dataset(tokenizer, "hash", DATA, tmp_path)
    shards = TokenShards(str(tmp_path))
    assert shards.value_names == NAMES
    for i, clip in enumerate(DATA):
        assert shards[i].conditions["actions"].tolist() == list(clip.conditions["actions"])
    batch = collate([shards.example(i) for i in range(3)])
    assert batch["actions"].dtype == torch.int64
    assert batch["action_vectors"].shape == (3, 9, 2)
    assert batch["action_vectors"].dtype == torch.float32
    with pytest.raises(UserError, match="value_names is"):
        encode_dataset(tokenizer, "hash", Unnamed(4, num_frames=9, size=32), tmp_path)


class Unnamed(KeyboardSprites):
    value_names = MappingProxyType({})


def test_clips_whose_conditions_differ_are_refused() -> None:
    bare = dataclasses.replace(DATA[0], conditions={})
    with pytest.raises(UserError, match="Only some of the clips have values of action_vectors, ac"):
        of_clips([DATA[1], bare])
    with pytest.raises(UserError, match="values of different shapes"):
        condition("actions").batch([[0, 1], [0, 1, 2]])


def parsed(name: str, text: str, num_frames: int = 3) -> list[object]:
    """The values of a flag, as the command line reads them."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    kind = condition(name)
    kind.add_argument(parser)
    given = getattr(parser.parse_args([kind.flag, text]), name)
    found: list[object] = kind.given(given, NAMES.get(name, ()), num_frames).tolist()
    return found


def test_the_command_line_reads_names_numbers_vectors_and_files(tmp_path: Path) -> None:
    assert parsed("actions", "stay,left,4") == [0, list(KEYS).index("left"), 4]
    assert parsed("action_vectors", "0,0;1,0;0,-1") == [[0, 0], [1, 0], [0, -1]]
    assert parsed("label", "3") == 3
    assert len(parsed("actions", ",".join(["left"] * 900), num_frames=900)) == 900
    rows = tmp_path / "rows.txt"
    rows.write_text("stay\nup\n\ndown\n")
    assert parsed("actions", str(rows)) == [0, 3, 4]
    rows.write_text("0, 0\n0, 1\n1, 0\n")
    assert parsed("action_vectors", str(rows))[1] == [0, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("actions", "stay,jump,up", "--actions: 'jump' is none of stay, left, right, up, down"),
        ("actions", "stay,up", "--actions has 2 rows, but the clips have 3 frames"),
        ("action_vectors", "0;1;2", "--action-vectors: got 1 numbers, expected 2"),
    ],
)
def test_rows_that_do_not_fit_are_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parsed(name, text)


SMALL = (
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
    "--data.clips_per_step=2",
    "--data.train.init_args.num_clips=4",
    "--data.val.init_args.num_clips=4",
)


def fit(run: Path, *options: str, setting: str = "keyboard-sprites") -> int:
    configs = ("--config", f"settings/{setting}", "--config", "paradigms/next_block")
    return main(["fit", *configs, "--config", "sizes/debug", f"--run={run}", *SMALL, *options])


@pytest.mark.parametrize("name", ["actions", "action_vectors"])
def test_a_model_of_actions_trains_loads_and_is_sampled(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    assert fit(run, f"--model.init_args.conditions=[{name}]") == 0
    model = load_generator(run)
    assert model.description["setting"]["model.conditions"] == [name]
    rows = "stay,up,up,up,up,left,left,left,left" if name == "actions" else "0,0;" + "1,0;" * 8
    flags = ["--prompt=a red cross", f"{condition(name).flag}={rows}", "--count=1"]
    assert main(["sample", f"--checkpoint={run}", *flags, f"--out={tmp_path / 'clips'}"]) == 0
    assert (tmp_path / "clips" / "000.mp4").is_file()
    longer = Conditions.of_clips([KeyboardSprites(1, num_frames=17)[0]])
    assert sample(model, longer, num_frames=5, progress=False).shape[1] == 5


def test_conditions_that_the_data_does_not_give_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path, "--model.init_args.conditions=[actions]", setting="sprites") == 2
    assert "this dataset has no names for its values" in capsys.readouterr().err
    assert fit(tmp_path, "--model.init_args.conditions=[action]") == 2
    assert "Did you mean 'actions'?" in capsys.readouterr().err


def test_no_further_conditions_leave_a_setting_as_it_was(tmp_path: Path) -> None:
    assert fit(tmp_path, setting="sprites") == 0
    assert "model.conditions" not in load_generator(tmp_path).description["setting"]
    assert len(of_clips([Sprites(1)[0]])) == len(FIELDS)
