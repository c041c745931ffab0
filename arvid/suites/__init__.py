"""Benchmark suites that score prompts of their own: VBench, GenEval, T2I-CompBench, DPG-Bench."""
