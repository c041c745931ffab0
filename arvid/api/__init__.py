"""The Python interface: functions that do what the commands do. They take strings and paths and return NumPy arrays.

The functions of this folder are `arvid.load`, `evaluate`, `compare`, `plot`, `tokenize`, `detokenize` and `push` (see
docs/python.md). `import arvid` finds them here at first use, so it stays fast.
"""
