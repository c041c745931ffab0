"""The LightningModule that trains a paradigm on the tokens of a frozen tokenizer.

Checkpoints store this module, and sampling loads it: tokenizer, conditioner and paradigm together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from arvid.contracts import (
    ContextSpec,
    ParadigmFactory,
    SamplingOptions,
    Size,
    TokenType,
    UserError,
    VideoTokenizer,
)
from arvid.nn.checkpointing import Checkpointing, set_checkpointing
from arvid.nn.conditioner import Conditioner
from arvid.nn.conditions import condition
from arvid.nn.draws import randn_like
from arvid.nn.text import TextEncoder
from arvid.training.checkpoint_io import (
    is_checkpoint,
    read_checkpoint,
    read_content,
    verify,
    verifying,
)
from arvid.training.compiling import compile_losses, compile_units
from arvid.training.export import describe, fingerprint, load_tokenizer
from arvid.training.guards import explain_nonfinite
from arvid.training.instantiate import bind, build, instantiate, named
from arvid.training.keys import CHECKPOINT_KEY, LAST_CHECKPOINT, PUBLISHED, TOKENIZER_KEY
from arvid.training.optimizer import OptimizerConfig, build_optimizer, may_fuse
from arvid.training.resuming import check_resume, stored_description
from arvid.training.resuming import differing as differing
from arvid.training.sampling_options import build_sampling
from arvid.training.sharding import shard, units
from arvid.training.step import log_step, one_or_nan
from arvid.trust import trusting

DEFAULT_OPTIMIZER = OptimizerConfig(lr=1e-3)


@dataclass(frozen=True, kw_only=True)
class Tokenizers:
    """The setting's tokenizers, one per token type: files, checkpoints or embedded names."""

    continuous: str | None = None
    discrete: str | None = None

    def of(self, token_type: TokenType) -> str:
        """Name of the tokenizer for a token type. Raises UserError if the setting has none."""
        found = self.continuous if token_type == "continuous" else self.discrete
        if found is None:
            raise UserError(
                f"This setting names no {token_type} tokenizer: set model.tokenizers.{token_type}."
            )
        return found

    def load(self, token_type: TokenType) -> VideoTokenizer:
        """The tokenizer for a token type. Raises UserError if there is none, or if its tokens have the other type."""
        name = self.of(token_type)
        tokenizer = load_tokenizer(name)
        if tokenizer.spec.type != token_type:
            raise UserError(
                f"model.tokenizers.{token_type} names {name}, whose tokens are {tokenizer.spec.type}."
            )
        return tokenizer


@dataclass(frozen=True)
class Trained:
    """Progress of a checkpoint's training: optimiser steps, seconds, clips seen."""

    steps: int
    seconds: float
    clips: int


class GeneratorModule(LightningModule):
    """Tokenizer (frozen), conditioner and paradigm.

    Args:
        paradigm: class of the paradigm with its own options; its other arguments come from those below.
        tokenizers: tokenizers of the setting.
        token_type: token type of this run, which selects the tokenizer.
        size: size of the paradigm's transformer.
        clip_shape: frames, height and width of the clips.
        num_classes: number of class labels in the data.
        value_names: names of the values of the data's further conditions (see `VideoDataset.value_names`).
        text: text encoder for captions, or null to ignore captions.
        label: condition on the class label.
        motion: condition on the motion score.
        fps: condition on the frame rate.
        conditions: names of further conditions (see `arvid.nn.conditions`).
        optimizer: options of the optimiser and its schedule.
        checkpoint: what is computed again in the backward pass instead of being stored: none; the blocks of the
            network, for a third more time; or blocks_and_head. Results do not change.
        compile: compile the losses with torch.compile, as one graph. Of a sharded network, each block and the head
            have a graph.
        sampling: default sampling options by name; commands can override them. A model ignores options of other models
            (see `arvid.training.sampling_options`).
    """

    trains_on_tokens = True

    def __init__(
        self,
        *,
        paradigm: ParadigmFactory,
        tokenizers: Tokenizers,
        token_type: TokenType,
        size: Size,
        clip_shape: tuple[int, int, int],
        num_classes: int = 0,
        value_names: dict[str, list[str]] | None = None,
        text: TextEncoder | None = None,
        label: bool = False,
        motion: bool = False,
        fps: bool = False,
        conditions: Sequence[str] = (),
        optimizer: OptimizerConfig = DEFAULT_OPTIMIZER,
        checkpoint: Checkpointing = "none",
        compile: bool = False,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizers.load(token_type)
        self.clip_shape = clip_shape
        self.optimizer_config = optimizer
        self.value_names = {"label": [str(i) for i in range(num_classes)], **(value_names or {})}
        switches = {"label": label, "motion": motion, "fps": fps}
        names = [*(name for name, is_on in switches.items() if is_on), *conditions]
        spec = self.tokenizer.spec
        self.conditioner = Conditioner(text=text, sizes=self._sizes(names), tokens=spec)
        self.paradigm = paradigm(spec, spec.grid(*clip_shape), self.conditioner.spec, size)
        set_checkpointing(self.paradigm, checkpoint)
        self.compile_losses = compile
        self._require_frame_conditions(self.conditioner.spec)
        self.sampling = build_sampling(type(self.paradigm), token_type, sampling or {})
        self.trained: Trained | None = None
        """Set if the module comes from a checkpoint of a training."""
        self.description: dict[str, Any] = {}
        """Config, setting and factors of the run as plain data; stored in its checkpoints."""
        self.allow_changes = False
        """Whether a run may resume although its setting differs from the checkpoint's."""

    @cached_property
    def tokenizer_hash(self) -> str:
        """Hash of the tokenizer: see `arvid.training.export.fingerprint`."""
        return fingerprint(self.tokenizer)

    def _sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Number of ids or components of each condition. Raises UserError for one that the data does not give."""
        return {name: condition(name).size(self.value_names.get(name, ())) for name in names}

    def _require_frame_conditions(self, spec: ContextSpec) -> None:
        """Raise UserError if there are conditions per frame that the paradigm would ignore."""
        if spec.frame_conditions and not self.paradigm.takes_frame_conditions:
            raise UserError(
                f"{type(self.paradigm).__name__} takes no conditions per frame ({', '.join(spec.frame_conditions)}): "
                "leave them out of model.conditions, or use another paradigm."
            )

    def train(self, mode: bool = True) -> GeneratorModule:
        super().train(mode)
        self.tokenizer.eval()
        return self

    def check_batch(self, batch: dict[str, Any]) -> None:
        """Raise UserError for conditions that the model does not know; called before a batch is moved to a GPU."""
        if self.device.type != "cpu":
            self.conditioner.check(batch)

    def configure_model(self) -> None:
        """Compile and divide the network, if the strategy is `sharded` (see `arvid.training.sharding`)."""
        mesh = self._device_mesh
        if mesh is not None and not isinstance(self, FSDPModule):
            if self.compile_losses and self.trainer.training:
                compile_units(units(self, skipped=self.tokenizer))
                self.compile_losses = False
            shard(self, mesh, whole=self.tokenizer, method="losses")

    def on_fit_start(self) -> None:
        """Compile the losses, if asked to: not earlier, since models for sampling are built in the same way."""
        if self.compile_losses:
            compile_losses(self.paradigm)
            self.compile_losses = False

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        losses = self.losses(batch, draw=True)
        log_step(self, losses, "train", len(batch["tokens"]))
        return losses["loss"] * one_or_nan(losses)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.paradigm.end_step()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        log_step(self, self.losses(batch), "val", len(batch["tokens"]))

    def explain_nonfinite(self, batch: dict[str, Any]) -> str:
        """Message for the user: where the values of a batch stop being finite, and what to do."""
        return explain_nonfinite(self, batch["tokens"], lambda: self.losses(batch))

    def losses(self, batch: dict[str, Any], *, draw: bool = False) -> dict[str, Tensor]:
        """The paradigm's losses of a batch.

        `draw`: sample tokens from the posterior if the batch has its std ("spread"); otherwise use the means.
        """
        condition = self.conditioner.from_batch(batch)
        tokens = batch["tokens"]
        if draw and "spread" in batch:
            tokens = tokens + batch["spread"] * randn_like(tokens)
        return self.paradigm.loss(tokens, condition)

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        fused = may_fuse(self.trainer.precision, self.device)
        return build_optimizer(self, self.optimizer_config, max_steps=steps, fused=fused)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[TOKENIZER_KEY] = describe(self.tokenizer)
        checkpoint[CHECKPOINT_KEY] = json.dumps(self.description)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises UserError if the checkpoint belongs to another run; see `arvid.training.resuming`."""
        check_resume(
            stored_description(checkpoint.get(CHECKPOINT_KEY, "{}")),
            self.description,
            step=checkpoint["global_step"],
            needs_length=self.optimizer_config.needs_length,
            allow_changes=self.allow_changes,
        )


def build_generator(
    config: Mapping[str, Any], *, given: Mapping[str, Any] | None = None
) -> GeneratorModule:
    """An untrained module from the constructor's arguments as plain data, as in a YAML file.

    `given`: arguments that are already objects, in place of those in `config`.

    Raises UserError for wrong arguments, and for a paradigm or text encoder that `arvid.registry` refuses.
    """
    cls, options = named("paradigms", config.get("paradigm"), what="The paradigm")
    text = config.get("text")
    given = dict(given or {})
    given["paradigm"] = bind(cls, options, what=f"The paradigm {cls.__name__}", positional=4)
    if "text" not in given:
        encoder = text and build("text_encoders", text, what="The text encoder")
        given["text"] = encoder or None
    plain = {key: value for key, value in config.items() if key not in given}
    return instantiate(GeneratorModule, plain, what="The model", given=given)


def load_generator(
    path: str | Path,
    *,
    trained: bool = True,
    dtype: str = "float32",
    trust: Iterable[str] = (),
) -> GeneratorModule:
    """A generator from a checkpoint: in eval mode, with EMA weights if stored, on the GPU if there is one.

    Args:
        path: run folder or file.
        trained: if False, only tokenizer and configuration come from the checkpoint; the weights are untrained.
        dtype: type of the paradigm's weights: "float32", "bfloat16" or "float16". It is an option of the row in tables.
        trust: packages whose unregistered classes the checkpoint may name (see `arvid.trust`).

    Raises UserError that names the file if it is missing, damaged or another kind of checkpoint, or if it names a class
    that neither the registry nor `trust` allows.
    """
    path = checkpoint_path(path)
    with verifying(path), trusting(trust):
        checkpoint = read_checkpoint(path, parts=("state_dict",) if trained else ())
        description = read_description(path, checkpoint)
        with _fitting(path):
            module = build_generator(_with_tokenizer(description["config"], path))
            if trained:
                module.load_state_dict(checkpoint["state_dict"])
                module.trained = _trained(checkpoint, description)
    if dtype != "float32":
        module.paradigm.to(getattr(torch, dtype))
        description = {**description, "options": {**description["options"], "dtype": dtype}}
    module.description = description
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return module.requires_grad_(False).eval().to(device)


def load_sampling(path: str | Path, *, trust: Iterable[str] = ()) -> SamplingOptions:
    """The sampling options of a checkpoint's model; the model is not built. Raises UserError as `load_generator`."""
    path = checkpoint_path(path)
    with trusting(trust):
        try:
            config = read_description(path, read_content(path))["config"]
            with _fitting(path):
                paradigm, _ = named("paradigms", config.get("paradigm"), what="The paradigm")
                return build_sampling(paradigm, config["token_type"], config.get("sampling") or {})
        except UserError:
            verify(path)  # if the file is damaged, report that instead
            raise


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Errors in the block name the file. The block builds the objects that a checkpoint describes."""
    try:
        yield
    except (UserError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit this version of arvid ({error}).") from error


def checkpoint_path(path: str | Path) -> Path:
    """The checkpoint of a run folder, the weights of a published model's folder, or the checkpoint itself.

    Raises UserError if there is none.
    """
    path = Path(path)
    file = path
    if path.is_dir() and not is_checkpoint(path):
        published = (path / PUBLISHED).is_file() and not is_checkpoint(path / LAST_CHECKPOINT)
        file = path / (PUBLISHED if published else LAST_CHECKPOINT)
    if not is_checkpoint(file):
        raise UserError(f"{file}: there is no such checkpoint. Train one with `arvid fit`.")
    return file


def read_description(path: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The description in a generator's checkpoint: config, setting, factors, options.

    Raises UserError that names the file for another kind of checkpoint, and if a part is missing or has a wrong type.
    """
    if CHECKPOINT_KEY not in checkpoint:
        kind = "a tokenizer's" if TOKENIZER_KEY in checkpoint else "another program's"
        raise UserError(f"{path}: is {kind} checkpoint, not that of an arvid generator.")
    try:
        description = json.loads(checkpoint[CHECKPOINT_KEY])
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: its description cannot be read ({error}).") from error
    if not isinstance(description, dict):
        raise UserError(f"{path}: its description is {type(description).__name__}, not a table.")
    for part in ("config", "setting", "factors", "options"):
        _require(path, description, part, dict)
    _require(path, description, "setting_hash", str)
    _require(path, description["config"], "token_type", str)
    _require(path, checkpoint, "state_dict", dict)
    if "imported" not in description:
        _require(path, description["setting"], "data.clips_per_step", int)
        _require(path, checkpoint, "global_step", int)
    return description


def _require(path: Path, values: Mapping[str, Any], key: str, kind: type[Any]) -> None:
    if not isinstance(values.get(key), kind):
        what = type(values[key]).__name__ if key in values else "missing"
        raise UserError(f"{path}: not a whole checkpoint: {key} is {what}, not {kind.__name__}.")


def _with_tokenizer(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The module's configuration with the tokenizer that the checkpoint holds."""
    return {**config, "tokenizers": {config["token_type"]: str(path)}}


def _trained(checkpoint: Mapping[str, Any], description: Mapping[str, Any]) -> Trained | None:
    if "imported" in description:
        return None
    steps = checkpoint["global_step"]
    throughput = _table(_table(checkpoint.get("callbacks")).get("Throughput"))
    return Trained(
        steps=steps,
        seconds=float(throughput.get("seconds", 0.0)),
        clips=steps * description["setting"]["data.clips_per_step"],
    )


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
