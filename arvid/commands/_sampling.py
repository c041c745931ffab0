"""Flags for the sampling options of the checkpoint's model, made from the fields of its options dataclass."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

from arvid.commands._flags import add_dtype_argument, add_shard_argument, add_trust_argument
from arvid.errors import UserError
from arvid.options import SamplingOptions, help_texts, range_of
from arvid.ranges import FPS, at_least

_DEST = "sampling."
"""Prefix of these options' names among all options of a command."""


class CommandParser(argparse.ArgumentParser):
    """A parser that can add options which depend on the command line, and suggests flags for unknown ones."""

    complete: Callable[[Sequence[str]], Sequence[str]] | None = None
    """Called with the command line before it is parsed. It adds options and returns their flags."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does. Exits with a message for options that neither the command nor the model has."""
        if self.complete is None:
            return super().parse_known_args(args, namespace)
        added = self.complete(args or ())
        self.complete = None
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(
                f"unrecognized arguments: {' '.join(unknown)}. {self._advice(unknown, added)}"
            )
        return found, unknown

    def _advice(self, unknown: Sequence[str], added: Sequence[str]) -> str:
        flag = next((a for a in unknown if a.startswith("--")), unknown[0]).partition("=")[0]
        close = difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.75)
        suggestion = f"Did you mean {close[0]}? " if close else ""
        return f"{suggestion}The sampling options are {', '.join(added)}"


def add_sampling_arguments(parser: CommandParser) -> None:
    """Declare flags for the sampling options of the model in `--checkpoint`; without it, those common to all models.

    The flags are added when the command line is parsed.
    """
    parser.complete = partial(_add_options, parser)


def sampling_options(options: argparse.Namespace, default: SamplingOptions) -> SamplingOptions:
    """The model's options, with those from the command line replaced."""
    given = {k.removeprefix(_DEST): v for k, v in vars(options).items() if k.startswith(_DEST)}
    return default.replace(**{k: v for k, v in given.items() if v is not None})


def _add_options(parser: CommandParser, arguments: Sequence[str]) -> list[str]:
    """Add the options of the model on the command line; returns their flags."""
    model = _model_options(arguments)
    if model is None:
        note = "Each model has more options: `--checkpoint RUN --help` lists them."
    else:
        note = "The defaults are those of the checkpoint."
    options = model or SamplingOptions()
    group = parser.add_argument_group("sampling options", note)
    hints, texts = get_type_hints(type(options)), help_texts(type(options))
    for field in dataclasses.fields(options):
        value = getattr(model, field.name, None)
        default = "" if value is None else f" (default: {value})"
        text = f"{texts.get(field.name, '')}{default}".replace("%", "%%")
        try:
            group.add_argument(
                _flag(field.name),
                dest=f"{_DEST}{field.name}",
                default=None,
                help=text,
                **_parsing(field, hints[field.name]),
            )
        except argparse.ArgumentError as error:
            raise UserError(
                f"This model's option {field.name} is also one of the command's: its paradigm must rename it."
            ) from error
    return [_flag(field.name) for field in dataclasses.fields(options)]


def _model_options(arguments: Sequence[str]) -> SamplingOptions | None:
    """The options of the model in `--checkpoint`, or None without it. Raises UserError if it cannot be read."""
    early = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    early.add_argument("--checkpoint")
    add_trust_argument(early)
    try:
        known, _ = early.parse_known_args(arguments)
    except argparse.ArgumentError:  # the command's own parser says so
        return None
    if known.checkpoint is None:
        return None
    from arvid.training.generator_module import load_sampling

    return load_sampling(known.checkpoint, trust=known.trust)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parsing(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """Keywords of `add_argument` for a field whose type is `hint`, which may be `... | None`."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if kinds == [bool]:
        return {"action": argparse.BooleanOptionalAction}
    if kinds == [int]:
        return {"type": range_of(field).integer, "metavar": "N"}
    if kinds == [float]:
        return {"type": range_of(field).number, "metavar": "X"}
    return {"type": str}


def add_video_arguments(parser: CommandParser) -> None:
    """Add the sampling options that VBench and its relatives share."""
    parser.add_argument(
        "--frames", type=at_least(1).integer, help="frames per video (default: as trained)"
    )
    parser.add_argument("--motion", type=at_least(0).number, help="motion score, pixels per frame")
    parser.add_argument(
        "--fps", type=FPS.number, default=8.0, help="frame rate of the files (default: 8)"
    )
    parser.add_argument("--seed", type=at_least(0).integer, default=0)
    add_shard_argument(parser, "video")
    add_dtype_argument(parser)
    add_sampling_arguments(parser)
