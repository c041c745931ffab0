"""Ranges of the options that `arvid fit` and `validate` pass to Lightning, which accepts many meaningless values.

Options of arvid's own classes have their ranges in the classes.
"""

from __future__ import annotations

import math
import re
from typing import Any

from jsonargparse import Namespace

from arvid.contracts import UserError
from arvid.ranges import above, at_least, between

RANGES = {
    "seed_everything": between(0, 2**32 - 1),
    "save_every_n_steps": at_least(1),
    "wait_minutes": above(0),
    "keep_checkpoints": at_least(1),
    "trainer.accumulate_grad_batches": at_least(1),
    "trainer.check_val_every_n_epoch": at_least(1),
    "trainer.devices": at_least(1),
    "trainer.fast_dev_run": at_least(0),
    "trainer.gradient_clip_val": at_least(0),
    "trainer.limit_predict_batches": at_least(0),
    "trainer.limit_test_batches": at_least(0),
    "trainer.limit_train_batches": above(0),
    "trainer.limit_val_batches": at_least(0),
    "trainer.log_every_n_steps": at_least(0),
    "trainer.max_epochs": at_least(1),
    "trainer.max_steps": at_least(1),
    "trainer.min_epochs": at_least(0),
    "trainer.min_steps": at_least(0),
    "trainer.num_nodes": at_least(1),
    "trainer.num_sanity_val_steps": at_least(0),
    "trainer.overfit_batches": at_least(0),
    "trainer.reload_dataloaders_every_n_epochs": at_least(0),
    "trainer.val_check_interval": above(0),
}
ALL = -1
"""Lightning's value for: all devices, all batches, training without an end."""
TAKE_ALL = (
    "trainer.devices",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.num_sanity_val_steps",
)


def check_options(config: Namespace) -> None:
    """Raise UserError for the first option outside its range, with key, value and range."""
    _require_finite(config.as_dict(), "")
    for key, allowed in RANGES.items():
        value = _number(config.get(key))
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and not (value == ALL and key in TAKE_ALL):
            allowed.require(**{key: value})


def _number(value: Any) -> Any:
    """The number in a string of digits: options that may also be a word (trainer.devices) are parsed as strings."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?\d{1,4000}", value) else value


def _require_finite(value: Any, key: str) -> None:
    """Raise UserError if a number at any depth of an option's value is NaN or infinite."""
    if isinstance(value, dict):
        for name, item in value.items():
            _require_finite(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _require_finite(item, f"{key}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key} must be a finite number, not {value}.")
