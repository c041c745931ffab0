"""NOVA: frame by frame, and inside a frame random sets of tokens (arXiv 2412.14169)."""

from arvid.paradigms.nova.paradigm import NOVA

__all__ = ["NOVA"]
