"""Trains and scores several runs side by side: shared code of the scripts in benchmarks/."""
