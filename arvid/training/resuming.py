"""Decides whether a run may resume from a checkpoint: settings must be equal, unless the user allows changes.

A key that one of two settings lacks counts as the option's default. So a new option that is off by default changes no
older run.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast, get_args

from lightning.pytorch.utilities import rank_zero_only

from arvid.errors import UserError

if TYPE_CHECKING:
    from jsonargparse._parameter_resolvers import ParamData

logger = logging.getLogger(__name__)

CHANGES = "changes"
"""Key of a setting: list of changes during the run, each with its step."""
PARTS = ("setting", "factors", "options")
MAX_STEPS = "trainer.max_steps"
FIXED = ("model.optimizer.muon", "data.clip_shape", "tokenizer.")
"""Prefixes of keys that cannot change: with another value the checkpoint's tensors do not fit."""

Description = Mapping[str, Any]
Difference = tuple[Any, Any]
"""The checkpoint's value and this run's value ("there" and "here" in messages)."""


def differing(
    a: Description, b: Description, parts: tuple[str, ...], *, model: type | None = None
) -> list[str]:
    """A line `key: VALUE there, VALUE here` for each key of the named parts that differs between two descriptions.

    `model` is the class of the trained module; by default GeneratorModule.
    """
    found: dict[str, Difference] = {}
    for part in parts:
        found.update(differences(a, b, part, model))
    return _lines(found)


def differences(
    a: Description, b: Description, part: str, model: type | None = None
) -> dict[str, Difference]:
    """The keys of a part (`setting`, `factors`, `options`) that differ between two descriptions, with both values."""
    left, right = a.get(part, {}), b.get(part, {})
    paradigms = a.get("factors", {}).get("paradigm"), b.get("factors", {}).get("paradigm")
    paradigm = paradigms[0] if paradigms[0] == paradigms[1] else None
    filled = (
        with_defaults(left, right, model, paradigm),
        with_defaults(right, left, model, paradigm),
    )
    keys = sorted({*left, *right})
    pairs = {key: (filled[0].get(key), filled[1].get(key)) for key in keys}
    return {
        key: (there, here)
        for key, (there, here) in pairs.items()
        if there != here and not _is_earlier(b, key, there) and not _is_earlier(a, key, here)
    }


def _is_earlier(description: Description, key: str, value: Any) -> bool:
    """Whether an earlier version of arvid wrote this value for the same thing."""
    earlier = description.get("earlier", {})
    return key in earlier and earlier[key] == value


def with_defaults(
    setting: Mapping[str, Any],
    keys: Mapping[str, Any],
    model: type | None = None,
    paradigm: str | None = None,
) -> dict[str, Any]:
    """A setting (or options) with missing `keys` filled in by their defaults, where the default is known.

    If it is not known, a key that is null in `keys` becomes null.

    Args:
        setting: flat dict with dotted keys.
        keys: another setting, or the union of several.
        model: class of the trained module; by default GeneratorModule.
        paradigm: short name of the paradigm whose options begin with `paradigm.`.
    """
    filled = dict(setting)
    for key in keys.keys() - setting.keys():
        try:
            default = _default(key, setting, model, paradigm)
        except (KeyError, AttributeError, TypeError, ValueError):
            if keys[key] is None:  # a removed option that was not used
                filled[key] = None
            continue
        is_factor_option = key.startswith(("paradigm.", "size."))  # stored as strings
        filled[key] = str(default) if is_factor_option else json.loads(json.dumps(default))
    return filled


def union_of(settings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The keys of several settings, each with a value of one of them; null only if all have null."""
    found: dict[str, Any] = {}
    for setting in settings:
        found.update({k: v for k, v in setting.items() if v is not None or k not in found})
    return found


def check_resume(
    stored: Mapping[str, Any],
    own: dict[str, Any],
    *,
    step: int,
    needs_length: bool,
    allow_changes: bool,
    model: type | None = None,
) -> None:
    """Check that a run may resume from a checkpoint. Raises UserError with all differences if it may not.

    A longer `trainer.max_steps` is always allowed if the learning rates so far do not depend on it: the result is the
    same as a run of the new length. Other allowed changes are recorded as `changes` in the setting of `own`.

    Args:
        stored: description in the checkpoint.
        own: description of this run.
        step: finished steps of the checkpoint's training.
        needs_length: whether a step's learning rate depends on the number of all steps.
        allow_changes: whether the setting may differ.
        model: class of the trained module; by default GeneratorModule.
    """
    if not own:
        return  # a run from Python has no description to compare
    setting = dict(stored.get("setting", {}))
    changes = setting.pop(CHANGES, [])
    changed = differences({**stored, "setting": setting}, own, "setting", model)
    fixed = {key: pair for key, pair in changed.items() if key.startswith(FIXED)}
    for part in ("factors", "options"):
        fixed.update(differences(stored, own, part, model))
    lengthened = changed.keys() == {MAX_STEPS} and not needs_length
    if fixed or (changed and not (allow_changes or lengthened)):
        raise UserError(_refusal({**changed, **fixed}, fixed=bool(fixed)))
    _require_steps_left(changed, step)
    if changed:
        _log_changes(changed, step, lengthened)
    if changed and not lengthened:
        changes = [*changes, *(f"after step {step}: {line}" for line in _lines(changed))]
    if changes:
        _record_changes(own, changes)


def stored_description(text: Any) -> dict[str, Any]:
    """Parse the description of a run in its checkpoint (JSON). Raises UserError if it is not valid."""
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"The checkpoint's description cannot be read ({error}).") from error
    parts = [found.get(part, {}) for part in PARTS] if isinstance(found, dict) else [found]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError("The checkpoint's description does not describe a run.")
    return dict(found)


def _refusal(changed: dict[str, Difference], *, fixed: bool) -> str:
    text = (
        "The checkpoint belongs to a run with another configuration: "
        f"{'; '.join(_lines(changed))}. Use another --run folder, or delete this one"
    )
    if fixed:
        return f"{text}."
    if changed.keys() == {MAX_STEPS}:
        text += (
            ", since the learning rates of a run depend on its length (unless schedule is constant)"
        )
    return (
        f"{text}. With --allow_changes true the run resumes with the new configuration, "
        "and its setting records what changed after which step."
    )


def _require_steps_left(changed: dict[str, Difference], step: int) -> None:
    length = changed.get(MAX_STEPS, (None, None))[1]
    if length is not None and 0 <= length < step:
        raise UserError(
            f"The checkpoint already has {step} steps, more than trainer.max_steps {length}."
        )


@rank_zero_only
def _log_changes(changed: dict[str, Difference], step: int, lengthened: bool) -> None:
    text = f"Resuming after step {step} with changes: {'; '.join(_lines(changed))}. "
    if lengthened:
        text += "The schedule is constant, so run and setting equal those of the new length."
    else:
        text += "Learning rates now follow the new configuration. The setting records the changes."
    logger.warning(text)


def _record_changes(own: dict[str, Any], changes: list[str]) -> None:
    from arvid.training.setting import setting_hash

    own["setting"] = {**own["setting"], CHANGES: changes}
    own["setting_hash"] = setting_hash(own["setting"])


def _lines(found: Mapping[str, Difference]) -> list[str]:
    return [f"{key}: {there!r} there, {here!r} here" for key, (there, here) in found.items()]


def _default(key: str, setting: Mapping[str, Any], model: type | None, paradigm: str | None) -> Any:
    """Default of an option, from the signature of its class. Raises KeyError if it has none."""
    root, *path = key.split(".")
    if root == "averaging" and not _has(setting, root):
        raise KeyError(key)  # that run has no EMA
    owner = _root(root, model, paradigm)
    prefix = root
    for name in path[:-1]:
        prefix = f"{prefix}.{name}"
        owner = _inner(owner, name, prefix, setting)
    default = _value(owner, path[-1])
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return dataclasses.asdict(default)
    return default


def _inner(owner: Any, name: str, prefix: str, setting: Mapping[str, Any]) -> Any:
    """Owner of the options below a prefix: their class, or the default instance if the setting has none of them."""
    if name == "init_args":
        return owner
    if f"{prefix}.class_path" in setting:
        return _loaded_class(setting[f"{prefix}.class_path"])
    return _dataclass(owner, name) if _has(setting, prefix) else _value(owner, name)


def _has(setting: Mapping[str, Any], prefix: str) -> bool:
    return any(key.startswith(f"{prefix}.") for key in setting)


def _value(owner: Any, name: str) -> Any:
    """Default of a constructor's parameter, or the value of a dataclass instance's field."""
    if not callable(owner):
        return vars(owner)[name]
    default = _parameter(owner, name).default
    if default is inspect.Parameter.empty:
        raise KeyError(name)
    return default


def _parameter(owner: Any, name: str) -> ParamData:
    from arvid.training.instantiate import parameters

    return parameters(owner)[name]


def _dataclass(owner: Any, name: str) -> type:
    """The dataclass in a parameter's annotation, which may be `... | None`."""
    hint = _parameter(owner, name).annotation
    kinds = [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]
    if not kinds:
        raise KeyError(name)
    return cast("type", kinds[0])


def _loaded_class(path: str) -> type:
    """A class by its path, if its module is imported already: a setting from a file must import nothing."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules[module], name)
    if not isinstance(found, type):
        raise KeyError(path)
    return found


def _root(name: str, model: type | None, paradigm: str | None) -> Callable[..., Any]:
    """Class of the options whose keys begin with a name."""
    if name == "paradigm" and paradigm is not None:
        from arvid import registry

        return cast("type", registry.get("paradigms", paradigm))
    if name == "model" and model is not None:
        return model
    return _roots()[name]


@functools.cache
def _roots() -> dict[str, Callable[..., Any]]:
    from lightning import Trainer

    from arvid.contracts import Size
    from arvid.data.datamodule import VideoDataModule
    from arvid.training.averaging import EMAWeightAveraging
    from arvid.training.generator_module import GeneratorModule

    return {
        "model": GeneratorModule,
        "data": VideoDataModule,
        "trainer": Trainer,
        "averaging": EMAWeightAveraging,
        "size": Size,
    }
