"""Setting and factors of a run. Rows of a comparison must have equal settings; factors may differ.

A run is setting + token type + paradigm + size. The last three are its factors; everything else that can change a
result is its setting. Paths, loggers and the number of data workers belong to neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from arvid import registry
from arvid.contracts import TokenType, UserError, VideoDataset, VideoTokenizer
from arvid.files import sha256_file, sha256_json
from arvid.nn.conditions import FIELDS
from arvid.training.checkpoint_io import checkpoint_sha256
from arvid.training.export import fingerprint
from arvid.training.generator_module import Tokenizers, checkpoint_path

TRAINER_KEYS = (
    "max_steps",
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
)
NO_SETTING = ("tokenizer", "gradient_checkpointing")
"""Arguments of TokenizerModule outside the setting: one is a factor, the other changes no result."""
AVERAGING = "arvid.training.averaging.EMAWeightAveraging"
LIGHTNING_AVERAGING = "lightning.pytorch.callbacks.EMAWeightAveraging"
"""Lightning's class, named in older settings. It gives the same averages, so it must give the same hash."""
START_FROM = "arvid.training.start_from.StartFrom"


def describe_run(
    config: Mapping[str, Any],
    train: VideoDataset,
    val: VideoDataset,
    *,
    num_processes: int = 1,
    loaded: VideoTokenizer | None = None,
) -> dict[str, Any]:
    """Description of a run as plain data.

    Keys: `setting`, `setting_hash`, `factors`, `options` (of the factors), `config` (of the model), `training` and
    `validation` (its datasets) and `earlier` (values that earlier versions wrote for this setting, so
    older runs are recognised).

    Args:
        config: the whole configuration as plain data (`model`, `data`, `trainer`, `seed_everything`).
        train, val: the datasets. Their content counts, not their paths.
        num_processes: processes that share a global batch. Only the global batch size enters the setting.
        loaded: the tokenizer of the run's own token type, if it is loaded already.
    """
    model = dict(config["model"]["init_args"])
    setting = {
        **_of_training(config, train, val, num_processes),
        "data.clip_shape": model["clip_shape"],
        **_tokenizers(model["tokenizers"], loaded),
        **_conditions(model),
        **flatten(model["optimizer"], "model.optimizer"),
    }
    description = {
        "setting": setting,
        "factors": _factors(model),
        "options": _options(model),
        "config": model,
        "training": config["data"]["train"],
        "validation": config["data"]["val"],
        "earlier": earlier_fingerprints(train, val),
    }
    plain: dict[str, Any] = json.loads(json.dumps(description))  # tuples become lists, as in a file
    return {**plain, "setting_hash": setting_hash(plain["setting"])}


def unregistered(description: Mapping[str, Any]) -> list[str]:
    """Paths of the unregistered classes in a run's description: loading a file with them needs trust."""
    named: list[tuple[registry.Kind, Any]] = [
        ("paradigms", description["config"]["paradigm"]),
        ("text_encoders", description["config"]["text"]),
        ("datasets", description.get("training")),  # unknown to older runs
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
    """`setting`, `setting_hash` and `earlier` of a tokenizer's training. (`export.describe` describes the tokenizer.)

    Args:
        config, train, val, num_processes: as in `describe_run`.
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
    """Values that an earlier version of arvid wrote into settings for the same clips, by key."""
    found = {
        "data.train.fingerprint": train.earlier_fingerprint(),
        "data.val.fingerprint": val.earlier_fingerprint(),
    }
    return {key: value[:16] for key, value in found.items() if value is not None}


def describe_imported(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Description of an imported model. Its training is unknown, so `record` (its origin) replaces the setting."""
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
    """The part of a setting that is common to trainings of tokenizers and generators."""
    return {
        "data.train.fingerprint": train.fingerprint()[:16],
        "data.val.fingerprint": val.fingerprint()[:16],
        "data.posterior": config["data"]["posterior"],
        "data.clips_per_step": _clips_per_step(config, num_processes),
        "data.seed": config["data"]["seed"],
        **_shuffle_window(config),
        "seed": config["seed_everything"],
        **flatten({key: config["trainer"].get(key) for key in TRAINER_KEYS}, "trainer"),
        **_of_callbacks(config["trainer"].get("callbacks") or []),
    }


def _shuffle_window(config: Mapping[str, Any]) -> dict[str, int]:
    """The option, if it is set. Otherwise nothing, so that settings without it keep their hash."""
    window = config["data"].get("shuffle_window")
    return {} if window is None else {"data.shuffle_window": window}


def _clips_per_step(config: Mapping[str, Any], num_processes: int) -> int:
    if config["data"].get("clips_per_step"):
        return int(config["data"]["clips_per_step"])
    accumulated = int(config["trainer"].get("accumulate_grad_batches") or 1)
    return int(config["data"]["batch_size"]) * num_processes * accumulated


def setting_hash(setting: Mapping[str, Any]) -> str:
    """Hash of a setting; the order of keys does not matter."""
    return sha256_json(setting)[:16]


def flatten(value: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A nested dict as a flat dict with dotted keys, each with `prefix`."""
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


def _tokenizers(
    tokenizers: Mapping[str, str | None], loaded: VideoTokenizer | None
) -> dict[str, str]:
    """Hashes of the tokenizers of all token types. Rows share the pair, so a row's own token type does not matter."""
    named = Tokenizers(**tokenizers)
    kinds: list[TokenType] = [kind for kind in get_args(TokenType) if tokenizers.get(kind)]
    known = {loaded.spec.type: loaded} if loaded is not None else {}
    return {
        f"tokenizer.{kind}": fingerprint(known[kind] if kind in known else named.load(kind))[:16]
        for kind in sorted(kinds)
    }


def _of_callbacks(callbacks: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Options of weight averaging, and the hash of the checkpoint that training started from."""
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
        setting["start_from"] = checkpoint_sha256(file)[:16]
    return setting


def _factors(model: Mapping[str, Any]) -> dict[str, str]:
    return {
        "paradigm": str(model["paradigm"]["class_path"]).rsplit(".", 2)[-2],
        "token_type": model["token_type"],
        "size": model["size"]["name"],
    }


def _options(model: Mapping[str, Any]) -> dict[str, str]:
    """Options of paradigm and size, as strings. An ablation varies one of them."""
    paradigm = flatten(model["paradigm"].get("init_args") or {}, "paradigm")
    size = flatten(model["size"], "size")
    return {key: str(value) for key, value in sorted({**paradigm, **size}.items())}
