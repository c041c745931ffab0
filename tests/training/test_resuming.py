"""Which runs go on: those of the same setting, longer ones of a constant schedule, and changes that were asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arvid import registry
from arvid.cli import main
from arvid.contracts import UserError
from arvid.training.checkpoint_io import SEALED
from arvid.training.instantiate import parameters
from arvid.training.keys import SETTING_KEY
from arvid.training.optimizer import OptimizerConfig, build_optimizer
from arvid.training.resuming import check_resume, differing, union_of, with_defaults
from arvid.training.tokenizer_module import Images, TokenizerModule

Arguments = Callable[..., list[str]]
Losses = Callable[..., dict[int, float]]
CONSTANT = "--model.init_args.optimizer.schedule=constant"


def state(run: Path) -> dict[str, Any]:
    return dict(torch.load(run / "checkpoints/last.ckpt", weights_only=True))


def rates(run: Path) -> set[float]:
    groups = state(run)["optimizer_states"][0]["parts"][1]["param_groups"]
    return {group["lr"] for group in groups}


SETTING = {
    "model.optimizer.lr": 0.1,
    "model.text.class_path": "arvid.nn.text.WordTextEncoder",
    "model.text.init_args.dim": 64,
    "trainer.max_steps": 5,
    "averaging.decay": 0.9,
}


def test_an_option_that_is_no_more_and_was_not_used_does_not_count() -> None:
    """Lightning's averages have options that arvid's have not."""
    older = {**SETTING, "averaging.multi_avg_fn": None}
    assert differing({"setting": older}, {"setting": SETTING}, ("setting",)) == []
    assert with_defaults(SETTING, union_of([SETTING, older])) == older
    used = {**SETTING, "averaging.multi_avg_fn": "mean"}
    assert differing({"setting": used}, {"setting": SETTING}, ("setting",)) != []
    assert with_defaults(SETTING, union_of([SETTING, older, used])) == SETTING


@pytest.mark.parametrize(
    ("key", "default"),
    [
        ("model.optimizer.muon", False),
        ("model.optimizer.betas", [0.9, 0.95]),
        ("model.label", False),
        ("data.posterior", False),
        ("trainer.gradient_clip_val", None),
        ("averaging.update_every_n_steps", 1),
        ("model.text.init_args.max_words", 32),
    ],
)
def test_an_option_that_is_newer_than_the_run_is_at_its_default(key: str, default: object) -> None:
    assert with_defaults(SETTING, {key: None})[key] == default
    same, changed = ({**SETTING, key: value} for value in (default, "changed"))
    assert differing({"setting": SETTING}, {"setting": same}, ("setting",)) == []
    assert differing({"setting": same}, {"setting": SETTING}, ("setting",)) == []
    (line,) = differing({"setting": SETTING}, {"setting": changed}, ("setting",))
    assert line == f"{key}: {default!r} there, 'changed' here"


def test_what_has_no_default_differs() -> None:
    keys = {"seed": 0, "start_from": 0, "model.text.init_args.nothing": 0, "os.system.x": 0}
    assert with_defaults(SETTING, keys) == SETTING
    no_averages = {"seed": 0}
    assert with_defaults(no_averages, {"averaging.decay": 0.999}) == no_averages


def test_a_default_within_an_optional_group() -> None:
    keys = {"model.perceptual.net": "vgg", "model.adversarial.r1": 0.0}
    with_lpips = {"model.perceptual.weight": 0.1, "model.adversarial": None}
    filled = with_defaults(with_lpips, keys, TokenizerModule)
    assert filled == {**with_lpips, "model.perceptual.net": "vgg"}


def test_a_default_of_a_group_that_the_older_run_lacks_as_a_whole() -> None:
    assert with_defaults({}, {"model.images.per_clip": 0}, TokenizerModule) == {
        "model.images.per_clip": Images().per_clip
    }


@pytest.mark.parametrize("paradigm", registry.names("paradigms"))
def test_options_of_a_paradigm_are_at_their_defaults(paradigm: str) -> None:
    """The table of paradigms says which class takes them."""
    name, parameter = next(
        (name, parameter)
        for name, parameter in parameters(registry.get("paradigms", paradigm)).items()
        if isinstance(parameter.default, int | float | str)
    )
    old = {"factors": {"paradigm": paradigm}, "options": {"size.dim": "64"}}
    more = {f"paradigm.{name}": str(parameter.default), "size.head_dim": "256"}
    new = {**old, "options": {**old["options"], **more}}
    assert differing(old, new, ("options",)) == []
    other = {**old, "options": {**new["options"], "size.head_dim": "128"}}
    assert differing(old, other, ("options",)) == ["size.head_dim: '256' there, '128' here"]


def test_a_finished_run_of_a_constant_schedule_goes_on_as_if_it_had_been_longer(
    tmp_path: Path, small_fit: Arguments, losses_of: Losses, caplog: pytest.LogCaptureFixture
) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    for run, steps in ((short, 4), (short, 6), (long, 6)):
        given = small_fit(run, "nova", CONSTANT, f"--trainer.max_steps={steps}")
        assert main(given) == 0
    assert "Resuming after step 4 with changes: trainer.max_steps: 4 there, 6 here." in caplog.text
    assert losses_of(short) == losses_of(long)
    ours, theirs = state(short), state(long)
    assert all(torch.equal(ours["state_dict"][k], v) for k, v in theirs["state_dict"].items())
    assert ours["arvid"] == theirs["arvid"]


def test_a_longer_schedule_has_to_be_asked_for_and_is_put_down(
    tmp_path: Path, small_fit: Arguments, losses_of: Losses, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small_fit(tmp_path, "nova", "--trainer.max_steps=3")) == 0
    longer = small_fit(tmp_path, "nova", "--trainer.max_steps=5", "--save_every_n_steps=1")
    assert main(longer) == 2
    message = capsys.readouterr().err
    assert "the learning rates of a run depend on its length" in message
    assert "--allow_changes true" in message
    assert main([*longer, "--allow_changes=true"]) == 0
    description = json.loads(state(tmp_path)["arvid"])
    changes = ["after step 3: trainer.max_steps: 3 there, 5 here"]
    assert description["setting"]["changes"] == changes
    assert max(losses_of(tmp_path)) == 4
    assert main(longer) == 0  # the same run from now on
    unbroken = tmp_path / "unbroken"
    assert main(small_fit(unbroken, "nova", "--trainer.max_steps=5")) == 0
    assert rates(tmp_path) == rates(unbroken)  # those of the new length
    hashes = {json.loads(state(run)["arvid"])["setting_hash"] for run in (tmp_path, unbroken)}
    assert len(hashes) == 2


def test_a_run_cannot_become_shorter_than_it_is() -> None:
    stored = {"setting": {"trainer.max_steps": 10}}
    with pytest.raises(UserError, match=r"already has 8 steps, more than trainer\.max_steps 6"):
        check_resume(
            stored,
            {"setting": {"trainer.max_steps": 6}},
            step=8,
            needs_length=False,
            allow_changes=False,
        )


def test_what_shapes_the_checkpoint_cannot_change() -> None:
    stored = {"setting": {"model.optimizer.muon": True, "trainer.max_steps": 10}}
    with pytest.raises(UserError, match=r"muon: True there, False here") as caught:
        check_resume(
            stored,
            {"setting": {"model.optimizer.muon": False, "trainer.max_steps": 10}},
            step=8,
            needs_length=False,
            allow_changes=True,
        )
    assert "--allow_changes" not in str(caught.value)


@pytest.fixture(scope="module")
def tokenizer_run(tmp_path_factory: pytest.TempPathFactory, small_tokenizer_fit: Arguments) -> Path:
    run = tmp_path_factory.mktemp("tokenizer")
    assert main(small_tokenizer_fit(run, "vae3d", "--trainer.max_steps=1")) == 0
    return run


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.init_args.optimizer.lr=0.001", "model.optimizer.lr: 0.006 there, 0.001 here"),
        ("data.clips_per_step=2", "data.clips_per_step: 4 there, 2 here"),
        ("seed_everything=3", "seed: 0 there, 3 here"),
        ("data.seed=3", "data.seed: 0 there, 3 here"),
        ("model.init_args.reconstruction.l2=0.5", "model.reconstruction.l2: 1.0 there, 0.5 here"),
        ("model.init_args.images.per_clip=4", "model.images.per_clip: 8 there, 4 here"),
        ("data.train.init_args.num_frames=5", "data.train.fingerprint"),
        ("trainer.gradient_clip_val=2", "trainer.gradient_clip_val: 1.0 there, 2"),
        ("trainer.max_steps=2", "the learning rates of a run depend on its length"),
    ],
)
def test_a_tokenizers_training_goes_on_under_its_own_setting_alone(
    tokenizer_run: Path,
    small_tokenizer_fit: Arguments,
    capsys: pytest.CaptureFixture[str],
    option: str,
    message: str,
) -> None:
    more = (
        [f"--{option}", "--data.val.init_args.num_frames=5"]
        if "num_frames" in option
        else [f"--{option}"]
    )
    assert main(small_tokenizer_fit(tokenizer_run, "vae3d", "--trainer.max_steps=1", *more)) == 2
    assert message in capsys.readouterr().err


def test_a_tokenizers_checkpoint_without_a_setting_goes_on_with_a_warning(
    tmp_path: Path,
    tokenizer_run: Path,
    small_tokenizer_fit: Arguments,
    losses_of: Losses,
    caplog: pytest.LogCaptureFixture,
) -> None:
    older = state(tokenizer_run)
    del older[SETTING_KEY], older[SEALED]
    (tmp_path / "checkpoints").mkdir()
    torch.save(older, tmp_path / "checkpoints/last.ckpt")
    assert main(small_tokenizer_fit(tmp_path, "vae3d", "--trainer.max_steps=2")) == 0
    assert "from a version of arvid that stored no setting" in caplog.text
    assert list(losses_of(tmp_path)) == [1]


def test_the_configurations_rates_count_and_not_the_checkpoints() -> None:
    def built(lr: float) -> tuple[Any, Any]:
        config = OptimizerConfig(lr=lr, betas=(0.5, lr), warmup_steps=0, schedule="linear")
        found = build_optimizer(torch.nn.Linear(2, 2), config, max_steps=10)
        return found["optimizer"], found["lr_scheduler"]["scheduler"]

    optimizer, schedule = built(0.1)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    other, other_schedule = built(0.4)
    other.load_state_dict(optimizer.state_dict())
    other_schedule.load_state_dict(schedule.state_dict())
    (decayed, plain) = other.param_groups
    assert decayed["lr"] == plain["lr"] == 0.4 * 0.5
    assert decayed["betas"] == (0.5, 0.4)
