"""Identical settings, by construction: what must be equal between the rows of a comparison, and what may differ.

A run is setting + token type + paradigm + size. The last three are its factors; all else that can change a result
is its setting. Where things lie on disk, how they are logged and how many workers load them is neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from arvid import registry
from arvid.contracts import TokenType, UserError, VideoDataset
from arvid.files import sha256_file, sha256_json
from arvid.nn.conditions import FIELDS
from arvid.training.export import fingerprint
from arvid.training.generator_module import Tokenizers, checkpoint_path

TRAINER_KEYS = (
    "max_steps",
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
)
NO_SETTING = ("tokenizer", "gradient_checkpointing")
"""Arguments of a tokenizer's training that are its factor, or change no result."""
AVERAGING = "arvid.training.averaging.EMAWeightAveraging"
LIGHTNING_AVERAGING = "lightning.pytorch.callbacks.EMAWeightAveraging"
"""Lightning's class, which older settings name. The averages are the same, and so is the setting's hash."""
START_FROM = "arvid.training.start_from.StartFrom"


def describe_run(
    config: Mapping[str, Any], train: VideoDataset, val: VideoDataset, *, num_processes: int = 1
) -> dict[str, Any]:
    """`setting`, `setting_hash`, `factors`, their `options`, and the `config` of a run's model and `validation` set.

    `earlier` holds values of the setting as an earlier version wrote them, by which runs of then are recognised.

    Args:
        config: the whole configuration as plain data (`model`, `data`, `trainer`, `seed_everything`).
        train, val: the datasets, whose content counts and not their place.
        num_processes: that share each step's clips; what counts is the clips of a step, not on how many devices.
    """
    model = dict(config["model"]["init_args"])
    setting = {
        **_of_training(config, train, val, num_processes),
        "data.clip_shape": model["clip_shape"],
        **_tokenizers(model["tokenizers"]),
        **_conditions(model),
        **flatten(model["optimizer"], "model.optimizer"),
    }
    description = {
        "setting": setting,
        "factors": _factors(model),
        "options": _options(model),
        "config": model,
        "validation": config["data"]["val"],
        "earlier": earlier_fingerprints(train, val),
    }
    plain: dict[str, Any] = json.loads(json.dumps(description))  # tuples become lists, as in a file
    return {**plain, "setting_hash": setting_hash(plain["setting"])}


def unregistered(description: Mapping[str, Any]) -> list[str]:
    """Paths of the classes in a run's description that files may not name unless their packages are trusted."""
    named: list[tuple[registry.Kind, Any]] = [
        ("paradigms", description["config"]["paradigm"]),
        ("text_encoders", description["config"]["text"]),
        ("datasets", description["validation"]),
    ]
    paths = [(kind, part["class_path"]) for kind, part in named if isinstance(part, Mapping)]
    return [path for kind, path in paths if not registry.is_registered(kind, path)]


def describe_tokenizer_run(
    config: Mapping[str, Any],
    train: VideoDataset,
    val: VideoDataset,
    *,
    clip_shape: Sequence[int],
    num_processes: int = 1,
) -> dict[str, Any]:
    """`setting` and `setting_hash` of a tokenizer's training. The tokenizer itself is described elsewhere.

    Args:
        config, train, val, num_processes: as those of `describe_run`.
        clip_shape: frames, height and width of the clips.
    """
    model = {key: v for key, v in config["model"]["init_args"].items() if key not in NO_SETTING}
    setting = {
        **_of_training(config, train, val, num_processes),
        "data.clip_shape": list(clip_shape),
        **flatten(model, "model"),
    }
    backbone = setting.get("model.perceptual.backbone")
    if backbone is not None:
        setting["model.perceptual.backbone"] = sha256_file(backbone)[:16]
    plain: dict[str, Any] = json.loads(json.dumps(setting))
    earlier = earlier_fingerprints(train, val)
    return {"setting": plain, "setting_hash": setting_hash(plain), "earlier": earlier}


def earlier_fingerprints(train: VideoDataset, val: VideoDataset) -> dict[str, str]:
    """Values of a setting as an earlier version of arvid wrote them for the same clips."""
    found = {
        "data.train.fingerprint": train.earlier_fingerprint(),
        "data.val.fingerprint": val.earlier_fingerprint(),
    }
    return {key: value[:16] for key, value in found.items() if value is not None}


def describe_imported(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a model that arvid did not train, of whose setting nothing is known; `imported` says whence it is."""
    setting = dict(record)
    description = {
        "setting": setting,
        "factors": _factors(config),
        "options": _options(config),
        "config": config,
        "validation": None,
        "imported": record,
    }
    plain: dict[str, Any] = json.loads(json.dumps(description))
    return {**plain, "setting_hash": setting_hash(plain["setting"])}


def _of_training(
    config: Mapping[str, Any], train: VideoDataset, val: VideoDataset, num_processes: int
) -> dict[str, Any]:
    """The part of a setting that trainings of tokenizers and generators have in common."""
    return {
        "data.train.fingerprint": train.fingerprint()[:16],
        "data.val.fingerprint": val.fingerprint()[:16],
        "data.posterior": config["data"]["posterior"],
        "data.clips_per_step": _clips_per_step(config, num_processes),
        "data.seed": config["data"]["seed"],
        "seed": config["seed_everything"],
        **flatten({key: config["trainer"].get(key) for key in TRAINER_KEYS}, "trainer"),
        **_of_callbacks(config["trainer"].get("callbacks") or []),
    }


def _clips_per_step(config: Mapping[str, Any], num_processes: int) -> int:
    if config["data"].get("clips_per_step"):
        return int(config["data"]["clips_per_step"])
    accumulated = int(config["trainer"].get("accumulate_grad_batches") or 1)
    return int(config["data"]["batch_size"]) * num_processes * accumulated


def setting_hash(setting: Mapping[str, Any]) -> str:
    """Hash of a setting's values, whatever their order."""
    return sha256_json(setting)[:16]


def flatten(value: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}.{key}"
        flat.update(flatten(item, name) if isinstance(item, Mapping) else {name: item})
    return flat


def _conditions(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is conditioned on. Older settings know no further conditions, so none of them are left out."""
    further = {"conditions": model["conditions"]} if model.get("conditions") else {}
    switches = {key: model[key] for key in ("text", *FIELDS)}
    return flatten({**switches, **further}, "model")


def _tokenizers(tokenizers: Mapping[str, str | None]) -> dict[str, str]:
    """Hashes of all token types' tokenizers: rows share the pair, whichever of the two they use."""
    named = Tokenizers(**tokenizers)
    kinds: list[TokenType] = [kind for kind in get_args(TokenType) if tokenizers.get(kind)]
    return {f"tokenizer.{kind}": fingerprint(named.load(kind))[:16] for kind in sorted(kinds)}


def _of_callbacks(callbacks: list[Mapping[str, Any]]) -> dict[str, Any]:
    """How weights are averaged, and what they began as (its content, not its place)."""
    found: dict[str, Mapping[str, Any]] = {}
    for callback in callbacks:
        name = callback.get("class_path", "")
        name = AVERAGING if name == LIGHTNING_AVERAGING else name
        if name in (AVERAGING, START_FROM) and name in found:
            raise UserError(f"The configuration has two of {name.rpartition('.')[2]}: keep one.")
        found[name] = callback.get("init_args", {})
    setting = flatten(found.get(AVERAGING, {}), "averaging")
    if START_FROM in found:
        file = checkpoint_path(found[START_FROM]["checkpoint"])
        setting["start_from"] = sha256_file(file)[:16]
    return setting


def _factors(model: Mapping[str, Any]) -> dict[str, str]:
    return {
        "paradigm": str(model["paradigm"]["class_path"]).rsplit(".", 2)[-2],
        "token_type": model["token_type"],
        "size": model["size"]["name"],
    }


def _options(model: Mapping[str, Any]) -> dict[str, str]:
    """The factors' own options: an ablation varies one of them."""
    paradigm = flatten(model["paradigm"].get("init_args") or {}, "paradigm")
    size = flatten(model["size"], "size")
    return {key: str(value) for key, value in sorted({**paradigm, **size}.items())}
