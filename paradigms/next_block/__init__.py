"""Next-block prediction: autoregressive over T x H x W blocks of tokens (arXiv 2502.07737)."""

from arvid.paradigms.next_block.paradigm import NextBlock

__all__ = ["NextBlock"]
