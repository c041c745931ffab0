"""arvid: comparative research on autoregressive video generation."""

from arvid._torchvision import declare_missing_operators

__version__ = "0.1.0"

declare_missing_operators()
