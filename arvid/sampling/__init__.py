"""Sampling: from conditions to clips."""
