"""`arvid export checkpoint`: a checkpoint as one file, without the parts that only a training needs."""

from __future__ import annotations

import argparse
from pathlib import Path

from arvid.importing import Exporter
from arvid.training.checkpoint_io import SHARDS, read_checkpoint, save_checkpoint, verifying
from arvid.training.generator_module import read_description

TRAINING_ONLY = (
    "current_model_state",
    "averaging_state",
    "optimizer_states",
    "lr_schedulers",
    SHARDS,
)
"""Keys that are left out: weights before averaging, states of the averaging, optimiser and schedule, hashes."""
NAME = "model.ckpt"


class CheckpointExporter(Exporter):
    """Write a generator's checkpoint as one file, model.ckpt, which all commands of arvid load.

    The checkpoint of a sharded training is a folder with files of all processes. This joins them. The written file
    holds the weights that sampling uses (the averages, if there are any). A training cannot resume from it.
    """

    def run(self, checkpoint: Path, out: Path, options: argparse.Namespace) -> list[str]:
        with verifying(checkpoint):
            content = read_checkpoint(checkpoint, parts=("state_dict",))
            read_description(checkpoint, content)
            kept = {key: value for key, value in content.items() if key not in TRAINING_ONLY}
            save_checkpoint(kept, out / NAME)
        return [NAME]
