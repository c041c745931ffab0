"""Sharded training: two processes compute what one does, and its checkpoints are read by any number of processes."""

from __future__ import annotations

import pickle
import shutil
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch

from arvid.cli import main
from arvid.errors import UserError
from arvid.sampling.sample import Conditions, sample
from arvid.training.checkpoint_io import CONTENT, read_checkpoint, verify
from arvid.training.generator_module import load_generator
from arvid.training.sharded_files import INDEX, read_tensors

LAST = "checkpoints/last.ckpt"
FIT = [
    "fit",
    "--config=settings/sprites",
    "--config=sizes/debug",
    "--data.train.init_args.num_clips=32",
    "--data.val.init_args.num_clips=4",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
    "--trainer.val_check_interval=2",
    "--trainer.max_steps=5",
    "--trainer.gradient_clip_val=0.1",
    "--save_every_n_steps=1",
    "--data.clips_per_step=8",
    "--model.init_args.optimizer.muon=false",
    "--data.batch_size=2",  # four batches a step, of which each of two processes accumulates two
]
SHARDED = "--trainer.strategy=sharded"
NOVA = "--config=paradigms/nova"
MUON = "--model.init_args.optimizer.muon=true"
SAMPLES = [
    "--trainer.callbacks+=arvid.training.callbacks.SampleVideos",
    "--trainer.callbacks.init_args.every_n_steps=2",
    "--trainer.callbacks.init_args.num_clips=1",
]


Compare = Callable[..., None]


@pytest.fixture(scope="session")
def same_losses(losses_of: Callable[..., dict[int, float]]) -> Compare:
    """`same_losses(one, other, steps=..., rel=1e-6)`: fails unless two runs have the same losses of so many steps."""

    def compare(one: Path, other: Path, *, steps: int, rel: float = 1e-6) -> None:
        for name in ("train_loss", "val_loss"):
            expected = losses_of(one, name)
            assert len(expected) == (steps if name == "train_loss" else steps // 2)
            assert losses_of(other, name) == pytest.approx(expected, rel=rel)

    return compare


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, together: Any) -> Path:
    """A folder with two runs of five steps: `one`, and `two`, which was killed and resumed, sharded by 2, 1, 2."""
    folder = tmp_path_factory.mktemp("sharded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARVID_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        codes, outputs = together.run([*FIT, NOVA, "--run=one"], 1, folder)
        assert codes == [0], outputs
        for count, killed_at in ((2, "2"), (1, "4"), (2, None)):
            more = {} if killed_at is None else {"ARVID_TEST_KILL_AT": killed_at}
            given = [*FIT, NOVA, *SAMPLES, SHARDED, "--run=two"]
            codes, outputs = together.run(given, count, folder, **more)
            assert codes == [0 if killed_at is None else -signal.SIGKILL] * count, outputs
    return folder


def test_two_processes_compute_what_one_does(runs: Path, same_losses: Compare) -> None:
    """With clipping, accumulation and averages, which validation uses. The first process samples between two steps."""
    same_losses(runs / "one", runs / "two", steps=5)
    assert (runs / "two/samples/step-0000004.mp4").is_file()


def test_each_process_writes_its_own_parts(runs: Path) -> None:
    last = runs / "two" / LAST
    assert last.resolve().name == "step-0000005.ckpt"
    files = {path.name: path.stat().st_size for path in last.iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp", INDEX, CONTENT} == files.keys()
    assert len(list(last.parent.iterdir())) == 4  # the newest three and the link


def test_joined_it_is_the_checkpoint_of_one_process(runs: Path) -> None:
    one, two = (read_checkpoint(runs / name / LAST) for name in ("one", "two"))
    assert one.keys() - {"sealed"} == two.keys() - {"sealed", "shards"}
    for part in ("state_dict", "current_model_state", "averaging_state"):
        torch.testing.assert_close(two[part], dict(one[part]), rtol=1e-4, atol=1e-5)
    moments = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, two)]
    torch.testing.assert_close(moments[1], moments[0], rtol=1e-3, atol=1e-5)
    assert not two["state_dict"]["paradigm.head.net.embed.weight"].is_meta


def test_one_file_is_exported_that_samples_alike(runs: Path, tmp_path: Path) -> None:
    assert main(["export", "checkpoint", str(runs / "two"), str(tmp_path)]) == 0
    exported = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert "optimizer_states" not in exported
    prompts = Conditions(num_clips=1, captions=["a red circle moves left"])
    videos = [
        sample(load_generator(path), prompts, progress=False)
        for path in (runs / "two", tmp_path / "model.ckpt")
    ]
    assert (videos[0] == videos[1]).all()
    assert load_generator(tmp_path / "model.ckpt").trained == load_generator(runs / "two").trained


def test_a_run_goes_on_with_and_without_sharding(
    runs: Path, tmp_path: Path, together: Any, same_losses: Compare
) -> None:
    """Two more steps of each run, in the other's way."""
    for name in ("one", "two"):
        shutil.copytree(runs / name, tmp_path / name, symlinks=True)
    longer = [*FIT, NOVA, "--trainer.max_steps=7", "--allow_changes=true"]
    for run, strategy in (("one", SHARDED), ("two", "--trainer.strategy=ddp")):
        codes, outputs = together.run([*longer, strategy, f"--run={run}"], 2, tmp_path)
        assert codes == [0, 0], outputs
    same_losses(tmp_path / "one", tmp_path / "two", steps=7)
    assert (tmp_path / "one" / LAST).is_dir()
    assert (tmp_path / "two" / LAST).is_file()


def test_muon_trains_parts_of_matrices(tmp_path: Path, together: Any, same_losses: Compare) -> None:
    """Its tolerance is larger: the orthogonal factors of small gradients depend on the order of sums."""
    short = [*FIT, NOVA, MUON, "--trainer.max_steps=3"]
    codes, outputs = together.run([*short, "--run=one"], 1, tmp_path)
    assert codes == [0], outputs
    for count, killed_at in ((2, {"ARVID_TEST_KILL_AT": "2"}), (2, {})):
        given = [*short, SHARDED, "--run=two"]
        codes, outputs = together.run(given, count, tmp_path, **killed_at)
    assert codes == [0, 0], outputs
    same_losses(tmp_path / "one", tmp_path / "two", steps=3, rel=1e-5)


@pytest.mark.parametrize("change", ["flipped", "gone", "content"])
def test_damage_is_found(runs: Path, tmp_path: Path, change: str) -> None:
    folder = tmp_path / "damaged.ckpt"
    shutil.copytree((runs / "two" / LAST).resolve(), folder)
    verify(folder)
    file = folder / (CONTENT if change == "content" else "__1_0.distcp")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if change == "gone":
        file.unlink()
    with pytest.raises(UserError, match="is damaged"):
        load_generator(folder)


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("this must not be run",))


def test_an_index_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / INDEX).write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UserError, match="cannot be read"):
        read_tensors({"x": torch.zeros(1)}, tmp_path, alone=True)
    assert "must not" not in capsys.readouterr().out


def test_tokenizers_are_not_sharded(tmp_path: Path, together: Any) -> None:
    given = ["--config=tokenizers/sprites-magvit_fsq", "--config=settings/sprites-tokenizers"]
    short = ["--trainer.max_steps=1", SHARDED, "--run=run"]
    codes, outputs = together.run(["fit", *given, *FIT[3:], *short], 1, tmp_path)
    assert codes == [2]
    assert "only generators can" in outputs[0]


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_four_processes_in_replicas(
    replicas: int, tmp_path: Path, together: Any, same_losses: Compare
) -> None:
    strategy = ["--trainer.strategy=arvid.training.sharding.ShardedStrategy"]
    strategy += [f"--trainer.strategy.replicas={replicas}", "--run=four"]
    codes, outputs = together.run([*FIT, NOVA, "--run=one"], 1, tmp_path)
    assert codes == [0], outputs
    codes, outputs = together.run([*FIT, NOVA, *strategy], 4, tmp_path)
    assert codes == [0] * 4, outputs
    same_losses(tmp_path / "one", tmp_path / "four", steps=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("paradigm", "token_type"),
    [
        *product(
            ["nova", "next_block", "next_token", "masked", "frame_diffusion"],
            ["continuous", "discrete"],
        ),
        ("next_scale", "continuous"),
    ],
)
def test_every_paradigm(
    paradigm: str, token_type: str, tmp_path: Path, together: Any, same_losses: Compare
) -> None:
    """With all activations computed again, and samples on the way."""
    given = [
        *FIT,
        *SAMPLES,
        f"--config=paradigms/{paradigm}",
        f"--model.init_args.token_type={token_type}",
        "--model.init_args.checkpoint=blocks_and_head",
        "--trainer.max_steps=4",
    ]
    for count, strategy in ((1, "--trainer.strategy=auto"), (2, SHARDED)):
        codes, outputs = together.run([*given, strategy, f"--run={count}"], count, tmp_path)
        assert codes == [0] * count, outputs
    same_losses(tmp_path / "1", tmp_path / "2", steps=4)


@pytest.mark.slow
@pytest.mark.parametrize(("muon", "rel"), [("false", 1e-6), ("true", 1e-5)])
def test_twenty_steps_killed_twice(
    muon: str, rel: float, tmp_path: Path, together: Any, same_losses: Compare
) -> None:
    given = [*FIT, NOVA, f"--model.init_args.optimizer.muon={muon}", "--trainer.max_steps=20"]
    codes, outputs = together.run([*given, "--run=one"], 1, tmp_path)
    assert codes == [0], outputs
    for count, killed_at in (
        (2, {"ARVID_TEST_KILL_AT": "7"}),
        (1, {"ARVID_TEST_KILL_AT": "14"}),
        (2, {}),
    ):
        codes, outputs = together.run([*given, SHARDED, "--run=two"], count, tmp_path, **killed_at)
    assert codes == [0, 0], outputs
    same_losses(tmp_path / "one", tmp_path / "two", steps=20, rel=rel)


SAVING = "arvid.training.sharded_saving"


@pytest.mark.slow
@pytest.mark.parametrize(
    "where",
    [
        f"{SAVING}:write_tensors:3",
        "torch:save:700",  # in the midst of a file
        f"{SAVING}:sha256_file:3",
        f"{SAVING}:save_checkpoint:3",
        f"{SAVING}:_complete:3",
        "arvid.training.saving:make_last:3",  # the folder is complete, last.ckpt not yet
    ],
)
def test_killed_in_a_write(
    where: str, runs: Path, tmp_path: Path, together: Any, same_losses: Compare
) -> None:
    """The checkpoint before is whole, a process that stays alive ends too, and the next run goes on."""
    given = [*FIT, NOVA, SHARDED, "--run=run"]
    codes, outputs = together.run(given, 2, tmp_path, ARVID_TEST_KILL_IN=where)
    assert -signal.SIGKILL in codes, outputs
    assert 0 not in codes, outputs
    last = tmp_path / "run" / LAST
    verify(last)
    assert 1 <= read_checkpoint(last)["global_step"] <= 4
    codes, outputs = together.run(given, 2, tmp_path)
    assert codes == [0, 0], outputs
    same_losses(runs / "one", tmp_path / "run", steps=5)
    assert not list(last.parent.glob(".*"))


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path, together: Any) -> None:
    """Files may have 100 kB: each write of the second run fails in both processes."""
    given = [*FIT, NOVA, SHARDED, "--run=run"]
    together.run(given, 2, tmp_path, ARVID_TEST_KILL_AT="3")
    last = tmp_path / "run" / LAST
    step = read_checkpoint(last)["global_step"]
    codes, outputs = together.run(given, 2, tmp_path, ARVID_TEST_FILE_BYTES="100000")
    assert codes == [2, 2], outputs
    assert f"step-{step + 1:07d}.ckpt could not be written" in outputs[0]
    assert f"arvid: error: The checkpoint run/checkpoints/step-{step + 2:07d}.ckpt" in outputs[0]
    assert "Traceback" not in outputs[0]
    verify(last)
    assert read_checkpoint(last)["global_step"] == step
    assert not list(last.parent.glob(".*"))


@pytest.mark.slow
@pytest.mark.skipif(which("g++") is None, reason="inductor needs a compiler of C++")
@pytest.mark.parametrize("paradigm", ["nova", "next_block"])
def test_compiled(paradigm: str, tmp_path: Path, together: Any, same_losses: Compare) -> None:
    """Blocks and head are compiled by inductor. Samples and validations on the way are not."""
    given = [*FIT, *SAMPLES, f"--config=paradigms/{paradigm}", "--trainer.max_steps=4"]
    codes, outputs = together.run([*given, "--run=one"], 1, tmp_path)
    assert codes == [0], outputs
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    compiled = ["--model.init_args.compile=true", SHARDED, "--run=two"]
    codes, outputs = together.run([*given, *compiled], 2, tmp_path, **caches)
    assert codes == [0, 0], outputs
    assert list(tmp_path.rglob("*.so"))
    same_losses(tmp_path / "one", tmp_path / "two", steps=4, rel=1e-5)
