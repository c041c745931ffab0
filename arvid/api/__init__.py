"""arvid in Python: what the commands do, with strings, paths and lists in and NumPy arrays out.

The functions of this folder are `arvid.load`, `evaluate`, `compare`, `plot`, `tokenize`, `detokenize` and `push` (see
docs/python.md). `import arvid` finds them here at first use, so it stays fast.
"""
