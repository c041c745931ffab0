"""NOVA: autoregressive over frames, and over random sets of tokens inside a frame (arXiv 2412.14169)."""

from arvid.paradigms.nova.paradigm import NOVA

__all__ = ["NOVA"]
