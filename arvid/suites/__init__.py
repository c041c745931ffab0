"""Benchmark suites with their own prompts: VBench, GenEval, T2I-CompBench, DPG-Bench."""
