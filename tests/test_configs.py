"""Every configuration that comes with arvid makes a run: built, trained one step, loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from arvid.cli import main
from arvid.data.sprites import Sprites
from arvid.data.video import write_video
from arvid.training.cli import find_config
from arvid.training.export import load_tokenizer
from arvid.training.generator_module import load_generator

FOLDER = Path(__file__).parents[1] / "configs"
PARADIGMS = sorted(path.stem for path in (FOLDER / "paradigms").glob("*.yaml"))
SIZES = sorted(path.stem for path in (FOLDER / "sizes").glob("*.yaml"))
TOKENIZERS = sorted(path.stem for path in (FOLDER / "tokenizers").glob("*.yaml"))
SETTINGS = sorted(path.stem for path in (FOLDER / "settings").glob("*.yaml"))
ONE_STEP = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
    "--data.batch_size=2",
]
SPRITES = ["--data.train.init_args.num_clips=4", "--data.val.init_args.num_clips=4"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes with five small videos each."""
    root = tmp_path_factory.mktemp("videos")
    for i, clip in enumerate(Sprites(10, num_frames=20, size=48)):
        write_video(root / ("Left", "Right")[i % 2] / f"v_{i:02d}.mp4", clip.video, 8)
    return root


@pytest.fixture(scope="module")
def clip_options(videos: Path) -> list[str]:
    return [
        f"--data.{part}.init_args.{option}"
        for part in ("train", "val")
        for option in (f"root={videos}", "val_fraction=0.5", "clips_per_video=1")
    ]


@pytest.fixture(scope="module")
def clip_tokenizers(
    tmp_path_factory: pytest.TempPathFactory, clip_options: list[str]
) -> dict[str, Path]:
    """Checkpoints of the clips' two tokenizers after one step: continuous and discrete."""
    runs = tmp_path_factory.mktemp("tokenizers")
    found = {}
    for name in (n for n in TOKENIZERS if n.startswith("clips-")):
        fit([f"tokenizers/{name}", "settings/clips-tokenizers"], runs / name, clip_options)
        checkpoint = runs / name / "checkpoints/last.ckpt"
        found[load_tokenizer(checkpoint).spec.type] = checkpoint
    return found


def fit(configs: list[str], run: Path, options: list[str]) -> None:
    given = [f"--config={name}" for name in configs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARVID_CACHE", str(run.parent / "cache"))
        assert main(["fit", *given, *ONE_STEP, *options, f"--run={run}"]) == 0


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_file_is_found_by_its_short_name(path: Path) -> None:
    found = find_config(str(path.relative_to(FOLDER).with_suffix("")))
    assert yaml.safe_load(found.read_text()) == yaml.safe_load(path.read_text())


def test_every_setting_is_run_below() -> None:
    assert SETTINGS == ["clips", "clips-tokenizers", "sprites", "sprites-tokenizers"]
    assert {name.split("-")[0] for name in TOKENIZERS} == {"clips", "sprites"}


@pytest.mark.parametrize("paradigm", PARADIGMS)
@pytest.mark.parametrize("size", SIZES)
def test_sprites(tmp_path: Path, paradigm: str, size: str) -> None:
    run = tmp_path / "run"
    fit(["settings/sprites", f"paradigms/{paradigm}", f"sizes/{size}"], run, SPRITES)
    assert load_generator(run).description["factors"]["size"] == size


@pytest.mark.parametrize("paradigm", PARADIGMS)
@pytest.mark.parametrize("size", SIZES)
def test_clips(
    tmp_path: Path,
    clip_options: list[str],
    clip_tokenizers: dict[str, Path],
    paradigm: str,
    size: str,
) -> None:
    run = tmp_path / "run"
    named = [
        f"--model.init_args.tokenizers.{kind}={path}" for kind, path in clip_tokenizers.items()
    ]
    configs = ["settings/clips", f"paradigms/{paradigm}", f"sizes/{size}"]
    fit(configs, run, [*clip_options, *named])
    model = load_generator(run)
    assert model.clip_shape == (17, 64, 64)
    assert model.description["factors"]["paradigm"] == paradigm


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(tmp_path: Path, clip_options: list[str], name: str) -> None:
    kind = name.split("-")[0]
    options = SPRITES if kind == "sprites" else clip_options
    run = tmp_path / "run"
    fit([f"tokenizers/{name}", f"settings/{kind}-tokenizers"], run, options)
    assert load_tokenizer(run / "checkpoints/last.ckpt").spec.causal


def test_the_tokenizers_of_a_setting_differ_in_the_bottleneck_alone() -> None:
    for kind in ("clips", "sprites"):
        arguments = [
            yaml.safe_load((FOLDER / f"tokenizers/{kind}-{name}.yaml").read_text())["model"][
                "init_args"
            ]["tokenizer"]["init_args"]
            for name in ("vae3d", "magvit_fsq")
        ]
        for shared in ("backbone", "reconstruction"):
            assert arguments[0][shared] == arguments[1][shared]
