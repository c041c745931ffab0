"""One wandb run for each run folder, with the configuration and the setting's hash. A resumed training continues it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from arvid.files import atomic_write
from arvid.processes import launch

CLASS = "WandbLogger"
ID_FILE = Path("logs/wandb-id")
"""File in the run folder that holds the id of its wandb run."""


def continue_wandb(loggers: Sequence[Any], run: Path) -> None:
    """Give the wandb loggers of a configuration the id of the folder's wandb run, and the folder's name.

    An id, version or name that the configuration gives is kept. Only the first process logs, so only it has an id.

    Args:
        loggers: configurations with `class_path` and `init_args`; those of wandb are changed.
        run: the run folder.
    """
    if launch().rank:
        return
    for logger in loggers:
        if logger["class_path"].rpartition(".")[2] == CLASS:
            options = logger["init_args"]
            if not (options.get("id") or options.get("version")):
                options["id"] = _id(run / ID_FILE)
            if not options.get("name"):
                options["name"] = run.resolve().name


def _id(path: Path) -> str:
    """The id in the file, which is made if it does not exist."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(secrets.token_hex(4))
    return path.read_text().strip()


class LogConfiguration(Callback):
    """Sends the configuration and the setting's hash to all loggers but CSV, beside which the configuration is a file.

    Args:
        config: the whole configuration as plain data.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log here, where a resumed run knows its final setting."""
        setting = getattr(pl_module, "description", {}).get("setting_hash")
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):
                logger.log_hyperparams({**self.config, "setting_hash": setting})
