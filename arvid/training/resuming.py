"""Whether a run may resume from a checkpoint: the settings must be equal, or the user must have allowed the change.

A key that one of two settings lacks stands for the default of the option: options are added over time, and those that
are off by default change no older run.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast, get_args, get_type_hints

from lightning.pytorch.utilities import rank_zero_only

from arvid.errors import UserError

logger = logging.getLogger(__name__)

CHANGES = "changes"
"""Key of a setting: what was changed in the course of the run, and after which step."""
PARTS = ("setting", "factors", "options")
MAX_STEPS = "trainer.max_steps"
FIXED = ("model.optimizer.muon", "data.clip_shape", "tokenizer.")
"""Keys (or their beginnings) without which the tensors of a checkpoint do not fit."""

Description = Mapping[str, Any]
Difference = tuple[Any, Any]
"""The value there and the value here."""


def differing(
    a: Description, b: Description, parts: tuple[str, ...], *, model: type | None = None
) -> list[str]:
    """`key: one value there, other value here` for each key of the named parts at which two descriptions differ.

    `model` is the class of the module that was trained: by default a generator.
    """
    found: dict[str, Difference] = {}
    for part in parts:
        found.update(differences(a, b, part, model))
    return _lines(found)


def differences(
    a: Description, b: Description, part: str, model: type | None = None
) -> dict[str, Difference]:
    """The values of each key of a part (`setting`, `factors`, `options`) at which two descriptions differ."""
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
        if there != here and not _was(b, key, there) and not _was(a, key, here)
    }


def _was(description: Description, key: str, value: Any) -> bool:
    """Whether an earlier version of arvid would have described the same thing by this value."""
    earlier = description.get("earlier", {})
    return key in earlier and earlier[key] == value


def with_defaults(
    setting: Mapping[str, Any],
    keys: Mapping[str, Any],
    model: type | None = None,
    paradigm: str | None = None,
) -> dict[str, Any]:
    """A setting (or options) with the default of each of the `keys` that it lacks and whose default is known.

    A key that is null elsewhere and whose default is not known is null.

    Args:
        setting: flat, by dotted keys.
        keys: another one, or what several others hold.
        model: class of the module that was trained: by default a generator.
        paradigm: short name of the paradigm, whose options begin with `paradigm.`.
    """
    filled = dict(setting)
    for key in keys.keys() - setting.keys():
        try:
            default = _default(key, setting, model, paradigm)
        except (KeyError, AttributeError, TypeError, ValueError):
            if keys[key] is None:  # an option that there is no more, and that was not used
                filled[key] = None
            continue
        as_options = key.startswith(("paradigm.", "size."))  # which are kept as strings
        filled[key] = str(default) if as_options else json.loads(json.dumps(default))
    return filled


def union_of(settings: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The keys of several settings with a value that one of them holds: null only where all hold that."""
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
    """Return if a run may resume from a checkpoint; raise UserError listing what differs otherwise.

    A longer `trainer.max_steps` is always allowed if the learning rates of the finished steps do not depend on it: the
    run is then the one of the new length. Other allowed changes are recorded in the setting of `own`, as `changes`.

    Args:
        stored: the checkpoint's description.
        own: this run's.
        step: steps that the checkpoint's training has done.
        needs_length: whether a step's learning rate depends on the number of all steps.
        allow_changes: whether the setting may differ.
        model: class of the module that is trained: by default a generator.
    """
    if not own:
        return  # not a run of the command line: there is nothing to compare
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
        _say_what_changes(changed, step, lengthened)
    if changed and not lengthened:
        changes = [*changes, *(f"after step {step}: {line}" for line in _lines(changed))]
    if changes:
        _put_down(own, changes)


def stored_description(text: Any) -> dict[str, Any]:
    """The description of a run out of its checkpoint. Raises UserError if it is not one."""
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"The checkpoint's description cannot be read ({error}).") from error
    parts = [found.get(part, {}) for part in PARTS] if isinstance(found, dict) else [found]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError("The checkpoint's description is not that of a run.")
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
        f"{text}. With --allow_changes true the run goes on under the new configuration, "
        "and its setting says what was changed after which step."
    )


def _require_steps_left(changed: dict[str, Difference], step: int) -> None:
    length = changed.get(MAX_STEPS, (None, None))[1]
    if length is not None and 0 <= length < step:
        raise UserError(
            f"The checkpoint has {step} steps already: trainer.max_steps {length} is less."
        )


@rank_zero_only
def _say_what_changes(changed: dict[str, Difference], step: int, lengthened: bool) -> None:
    what = f"Going on after step {step} with changes: {'; '.join(_lines(changed))}. "
    if lengthened:
        what += (
            "The schedule is constant, so this is the run of the new length, and so is its setting."
        )
    else:
        what += "Learning rates follow the new configuration from here on. The setting says so."
    logger.warning(what)


def _put_down(own: dict[str, Any], changes: list[str]) -> None:
    from arvid.training.setting import setting_hash

    own["setting"] = {**own["setting"], CHANGES: changes}
    own["setting_hash"] = setting_hash(own["setting"])


def _lines(found: Mapping[str, Difference]) -> list[str]:
    return [f"{key}: {there!r} there, {here!r} here" for key, (there, here) in found.items()]


def _default(key: str, setting: Mapping[str, Any], model: type | None, paradigm: str | None) -> Any:
    """Default of an option, from the signature of what takes it. Raises KeyError if there is none."""
    root, *path = key.split(".")
    if root == "averaging" and not _has(setting, root):
        raise KeyError(key)  # that run averages nothing
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
    """What takes the options below a prefix: a class, or the default instance where the setting has none of them."""
    if name == "init_args":
        return owner
    if f"{prefix}.class_path" in setting:
        return _loaded_class(setting[f"{prefix}.class_path"])
    return _dataclass(owner, name) if _has(setting, prefix) else _value(owner, name)


def _has(setting: Mapping[str, Any], prefix: str) -> bool:
    return any(key.startswith(f"{prefix}.") for key in setting)


def _value(owner: Any, name: str) -> Any:
    """Default of a parameter of a class, or a field of a dataclass's instance."""
    if not callable(owner):
        return vars(owner)[name]
    default = inspect.signature(owner).parameters[name].default
    if default is inspect.Parameter.empty:
        raise KeyError(name)
    return default


def _dataclass(owner: Any, name: str) -> type:
    """The dataclass that a parameter takes, which may be optional."""
    hints = get_type_hints(owner if dataclasses.is_dataclass(owner) else owner.__init__)
    kinds = [
        kind for kind in (hints[name], *get_args(hints[name])) if dataclasses.is_dataclass(kind)
    ]
    if not kinds:
        raise KeyError(name)
    return cast("type", kinds[0])


def _loaded_class(path: str) -> type:
    """A class by its path, if its module is in use; a setting out of a file makes nothing be imported."""
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules[module], name)
    if not isinstance(found, type):
        raise KeyError(path)
    return found


def _root(name: str, model: type | None, paradigm: str | None) -> Callable[..., Any]:
    """What takes the options whose keys begin with a name."""
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
