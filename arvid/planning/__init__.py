"""Costs of a run, computed before it starts: parameters, memory, FLOPs, days, sampling and encoding."""
