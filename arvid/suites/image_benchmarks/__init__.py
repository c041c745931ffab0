"""GenEval, T2I-CompBench(++) and DPG-Bench: sampling in their layouts, calls of their scorers, and scores.

The scorers are external programs with their own environments. arvid calls them as subprocesses and reads their output.
"""
