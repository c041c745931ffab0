"""Evaluation protocols, the harness that runs them, and result records."""
