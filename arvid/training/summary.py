"""What `arvid fit` prints before a training (what is trained, how and where) and after it (what to do next)."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from arvid.contracts import VideoDataset
from arvid.data.datamodule import VideoDataModule
from arvid.terminal import wrapped
from arvid.training.generator_module import GeneratorModule
from arvid.training.keys import LAST_CHECKPOINT
from arvid.training.tokenizer_module import TokenizerModule

SHOWN = ("train_loss", "val_loss", "val_psnr")
"""Logged values that the progress bar and the last lines of a training show."""


def opening(
    module: LightningModule, data: VideoDataModule, trainer: Trainer, *, save_every_n_steps: int
) -> str:
    """Lines to print before a training.

    Args:
        module: the module, with its description.
        data: its clips, after `share_steps`.
        trainer: not started yet; its root folder is the run's.
        save_every_n_steps: steps between two checkpoints.
    """
    run = Path(trainer.default_root_dir)
    setting = getattr(module, "description", {}).get("setting_hash", "unknown")
    length = f"{trainer.max_steps:,} steps" if trainer.max_steps > 0 else "no limit of steps"
    logs = [Path(log.log_dir) for log in trainer.loggers if isinstance(log, CSVLogger)]
    metrics = [f"losses in {folder.relative_to(run)}/metrics.csv" for folder in logs[-1:]]
    return _aligned(
        {
            "model": _model(module),
            "setting": f"{setting} (rows of a comparison have equal settings)",
            "data": f"{len(data.train):,} training and {len(data.val):,} validation clips of {_shape(data)}",
            "step": _step(data, trainer),
            "length": f"{length}, a checkpoint every {save_every_n_steps:,}",
            "run": ", ".join([f"{run}: weights in {LAST_CHECKPOINT}", *metrics]),
        }
    )


def closing(
    module: LightningModule,
    data: VideoDataModule,
    trainer: Trainer,
    *,
    seconds: float,
    configs: Iterable[str],
) -> str:
    """Lines to print after a training. `seconds` is its duration, `configs` are the values of --config."""
    run = trainer.default_root_dir
    first = f"Trained {trainer.global_step:,} steps in {duration(seconds)}: {shown(trainer)}."
    commands = _next_commands(module, data.val, run, configs)
    return "\n".join([first, *(["Next:"] if commands else []), *(f"  {c}" for c in commands)])


def shown(trainer: Trainer) -> str:
    """The last losses as text. Reading them makes the CPU wait for the device."""
    found = {name: v for name, v in trainer.callback_metrics.items() if name in SHOWN}
    return ", ".join(f"{name} {float(value):#.4g}" for name, value in found.items())


def duration(seconds: float) -> str:
    """Seconds as H:MM:SS, or M:SS below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _model(module: LightningModule) -> str:
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    parameters = f"{trained:,} trained parameters"
    if isinstance(module, GeneratorModule):
        factors = module.description.get("factors", {})
        name = factors.get("paradigm", type(module.paradigm).__name__)
        size = f", size {factors['size']}" if "size" in factors else ""
        tokenizer = sum(p.numel() for p in module.tokenizer.parameters())
        kind = module.tokenizer.spec.type
        return f"{name}, {kind} tokens{size}: {parameters}, a frozen tokenizer of {tokenizer:,}"
    if isinstance(module, TokenizerModule):
        spec = module.tokenizer.spec
        return f"{type(module.tokenizer).__name__}, {spec.type} tokens: {parameters}"
    return f"{type(module).__name__}: {parameters}"


def _shape(data: VideoDataModule) -> str:
    frames, height, width = data.clip_shape
    return f"{frames} frames of {height}x{width} pixels"


def _step(data: VideoDataModule, trainer: Trainer) -> str:
    processes, batches = trainer.world_size, trainer.accumulate_grad_batches
    size = data.division.batch_size
    shared = f"{processes} {'process' if processes == 1 else 'processes'}"
    parts = f"{batches} {'batch' if batches == 1 else 'batches'} of {size} on {shared}"
    device = trainer.strategy.root_device.type
    return (
        f"{size * batches * processes:,} clips: {parts} ({device}, precision {trainer.precision})"
    )


def _next_commands(
    module: LightningModule, val: VideoDataset, run: str, configs: Iterable[str]
) -> list[str]:
    if isinstance(module, TokenizerModule):
        return [
            f"arvid reconstruct VIDEO.mp4 --tokenizer {shlex.quote(f'{run}/{LAST_CHECKPOINT}')}"
        ]
    if not isinstance(module, GeneratorModule):
        return []
    run = shlex.quote(run)
    caption = val[0].caption if module.conditioner.text is not None else None
    prompt = f" --prompt {shlex.quote(caption)}" if caption else ""
    protocol = _protocol(configs)
    scored = (
        f"--protocol {protocol}"
        if protocol
        else "--protocol NAME  (arvid evaluate --list-protocols)"
    )
    return [
        f"arvid sample --checkpoint {run}{prompt}",
        f"arvid evaluate {run} {scored}",
        "arvid compare RUN RUN ...  (a table and a page of several runs)",
    ]


def _protocol(configs: Iterable[str]) -> str | None:
    """The protocol that has the name of a setting: `sprites-generation` for settings/sprites."""
    folder = Path(str(files("arvid"))) / "configs" / "protocols"
    names = (f"{Path(config).stem}-generation" for config in configs)
    return next((name for name in names if (folder / f"{name}.yaml").is_file()), None)


def _aligned(lines: Mapping[str, str]) -> str:
    width = max(map(len, lines)) + 2
    return "\n".join(wrapped(f"{name:<{width}}{text}", width) for name, text in lines.items())
