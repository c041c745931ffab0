"""Next-scale prediction (VAR, arXiv 2404.02905) frame by frame, on the tokens of any tokenizer."""

from arvid.paradigms.next_scale.paradigm import NextScale

__all__ = ["NextScale"]
