"""Names of what a checkpoint holds, and of the file that a run folder keeps it in."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT_KEY = "arvid"
"""A generator's configuration, setting and factors, as JSON: what it takes to build the module again."""
TOKENIZER_KEY = "tokenizer"
"""The tokenizer's short name and constructor arguments."""
SETTING_KEY = "tokenizer_setting"
"""The setting of a tokenizer's training and its hash, as JSON."""
LAST_CHECKPOINT = Path("checkpoints/last.ckpt")
"""The newest checkpoint, relative to the run folder."""
