"""Identical settings, by construction: what must be equal between the rows of a comparison, and what may differ.

A run is setting + token type + paradigm + size. The last three are its factors; all else that can change a result
is its setting. Where things lie on disk, how they are logged and how many workers load them is neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from arvid.contracts import TokenType, UserError, VideoDataset
from arvid.files import sha256_file, sha256_json
from arvid.training.export import fingerprint
from arvid.training.generator_module import Tokenizers, checkpoint_path

TRAINER_KEYS = (
    "max_steps",
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
)
CONDITIONS = ("text", "label", "motion", "fps")
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
        "data.train.fingerprint": train.fingerprint()[:16],
        "data.val.fingerprint": val.fingerprint()[:16],
        "data.clip_shape": model["clip_shape"],
        "data.posterior": config["data"]["posterior"],
        "data.clips_per_step": _clips_per_step(config, num_processes),
        "data.seed": config["data"]["seed"],
        "seed": config["seed_everything"],
        **_tokenizers(model["tokenizers"]),
        **flatten({key: model[key] for key in CONDITIONS}, "model"),
        **flatten(model["optimizer"], "model.optimizer"),
        **flatten({key: config["trainer"].get(key) for key in TRAINER_KEYS}, "trainer"),
        **_of_callbacks(config["trainer"].get("callbacks") or []),
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


def _clips_per_step(config: Mapping[str, Any], num_processes: int) -> int:
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
