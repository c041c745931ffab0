"""Masked prediction of the whole clip: MAGVIT on ids (arXiv 2212.05199), MAR on continuous tokens (2406.11838)."""

from arvid.paradigms.masked.paradigm import Masked

__all__ = ["Masked"]
