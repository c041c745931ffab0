"""Every configuration that comes with arvid makes a run: built, trained one step, loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from arvid import registry
from arvid.cli import main
from arvid.data.sprites import Sprites
from arvid.data.video import write_video
from arvid.training.cli import find_config
from arvid.training.export import load_tokenizer
from arvid.training.generator_module import load_generator

FOLDER = Path(__file__).parents[1] / "configs"
PUBLISHED = (
    "far-",
    "magvit",
    "mar",
    "nbp-",
    "nova-",
)  # the hyper-parameters of others: tests/paradigms


def arvids_own(kind: str) -> list[str]:
    names = sorted(path.stem for path in (FOLDER / kind).glob("*.yaml"))
    return [name for name in names if not name.startswith(PUBLISHED)]


PARADIGMS = arvids_own("paradigms")
NAMES = registry.names("paradigms")
RUNS = [(name, "debug") for name in PARADIGMS] + [(n, "tiny") for n in PARADIGMS if n in NAMES]
"""Every configuration with the smallest size; those that a paradigm's own name has, with arvid's other one too."""
TOKENIZERS = sorted(
    path.stem
    for setting in ("clips", "sprites")  # the others are sizes: tests/plugins/test_sizes.py
    for path in (FOLDER / "tokenizers").glob(f"{setting}-*.yaml")
)
SETTINGS = arvids_own("settings")
ONE_STEP = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=1",
    "--trainer.val_check_interval=1",
    "--data.clips_per_step=2",
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
    tokenizers = [f"{name}-tokenizers" for name in ("clips", "k600", "sprites", "ucf101")]
    assert sorted(SETTINGS) == sorted(["clips", "keyboard-sprites", "sprites", *tokenizers])
    assert {name.split("-")[0] for name in TOKENIZERS} == {"clips", "sprites"}


@pytest.mark.parametrize(("paradigm", "size"), RUNS)
def test_sprites(tmp_path: Path, paradigm: str, size: str) -> None:
    run = tmp_path / "run"
    fit(["settings/sprites", f"paradigms/{paradigm}", f"sizes/{size}"], run, SPRITES)
    assert load_generator(run).description["factors"]["size"] == size


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_keyboard_sprites(tmp_path: Path, paradigm: str) -> None:
    run = tmp_path / "run"
    fit(["settings/keyboard-sprites", f"paradigms/{paradigm}", "sizes/debug"], run, SPRITES)
    assert load_generator(run).conditioner.sizes == {"actions": 5}


@pytest.mark.parametrize(("paradigm", "size"), RUNS)
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
    factors = model.description["factors"]
    assert registry.get("paradigms", factors["paradigm"]) is type(model.paradigm)
    if paradigm in NAMES:
        assert factors["paradigm"] == paradigm


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(tmp_path: Path, clip_options: list[str], name: str) -> None:
    kind = name.split("-")[0]
    options = SPRITES if kind == "sprites" else clip_options
    run = tmp_path / "run"
    fit([f"tokenizers/{name}", f"settings/{kind}-tokenizers"], run, options)
    assert load_tokenizer(run / "checkpoints/last.ckpt").spec.causal


SMALLER = [  # bf16 convolutions take tens of times as long on a CPU without instructions for them
    "--model.init_args.tokenizer.init_args.backbone.base=4",
    "--model.init_args.tokenizer.init_args.backbone.num_units=1",
    "--model.init_args.tokenizer.init_args.backbone.num_mid_units=0",
    "--model.init_args.tokenizer.init_args.backbone.num_groups=4",
    "--model.init_args.adversarial.channels=16",
    "--model.init_args.perceptual=null",  # VGG's weights may not be here
    "--data.num_workers=0",
    *(
        f"--data.{part}.init_args.clip.{option}"
        for part in ("train", "val")
        for option in ("num_frames=5", "size=32")
    ),
]


@pytest.mark.parametrize("name", ["ucf101", "k600"])
def test_the_papers_tokenizer_settings(tmp_path: Path, videos: Path, name: str) -> None:
    paths = sorted(str(path.relative_to(videos)) for path in videos.glob("*/*.mp4"))
    listed = tmp_path / "list.csv"
    if name == "ucf101":
        listed.write_text("\n".join(paths))
        places = [f"root={videos}", f"split_list={listed}"]
    else:
        listed.write_text("\n".join(["path", *(str(videos / path) for path in paths)]))
        places = [f"path={listed}"]
    options = [f"--data.{part}.init_args.{place}" for part in ("train", "val") for place in places]
    run = tmp_path / "run"
    fit(
        ["tokenizers/magvit_fsq-published", f"settings/{name}-tokenizers"],
        run,
        [*options, *SMALLER],
    )
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert len(checkpoint["optimizer_states"]) == 2


@pytest.mark.parametrize(
    ("name", "lr", "clips", "epochs"), [("ucf101", 5e-5, 9_537, 2000), ("k600", 1e-4, 384_000, 100)]
)
def test_the_papers_tokenizer_settings_are_those_of_its_table_5(
    name: str, lr: float, clips: int, epochs: int
) -> None:
    config = yaml.safe_load((FOLDER / f"settings/{name}-tokenizers.yaml").read_text())
    trainer, data, model = config["trainer"], config["data"], config["model"]["init_args"]
    batch = data["clips_per_step"]
    assert batch == 256
    assert trainer["max_steps"] == pytest.approx(epochs * clips / batch, rel=1e-3)
    assert model["perceptual"]["weight"] == model["adversarial"]["weight"] == 0.1
    optimizer = model["optimizer"]
    assert (optimizer["lr"], optimizer["schedule"], optimizer["warmup_steps"]) == (
        lr,
        "linear",
        0.01,
    )
    for part in ("train", "val"):
        clip = data[part]["init_args"]["clip"]
        assert (clip["num_frames"], clip["size"], clip["fps"]) == (17, 128, 8)


def test_the_tokenizers_of_a_setting_differ_in_the_bottleneck_alone() -> None:
    for kind in ("clips", "sprites"):
        arguments = [
            yaml.safe_load((FOLDER / f"tokenizers/{kind}-{name}.yaml").read_text())["model"][
                "init_args"
            ]["tokenizer"]["init_args"]
            for name in ("vae3d", "magvit_fsq", "magvit_codebook")
        ]
        assert all(given["backbone"] == arguments[0]["backbone"] for given in arguments)
