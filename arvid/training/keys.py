"""Keys of arvid's entries in a checkpoint, and the path of a run's last checkpoint."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT_KEY = "arvid"
"""A generator's configuration, setting and factors as JSON. The module can be built again from them."""
TOKENIZER_KEY = "tokenizer"
"""The tokenizer's short name and constructor arguments."""
SETTING_KEY = "tokenizer_setting"
"""The setting of a tokenizer's training and its hash, as JSON."""
LAST_CHECKPOINT = Path("checkpoints/last.ckpt")
"""The newest checkpoint, relative to the run folder."""
PUBLISHED = Path("model.safetensors")
"""A published generator, relative to its repository."""
