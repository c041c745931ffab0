"""GenEval, T2I-CompBench(++) and DPG-Bench: sampling in their layouts, their own scorers, and numbers from the answers.

The scorers are other people's programs with environments of their own; arvid calls them as subprocesses and reads
what they write.
"""
