"""VBench (arXiv:2311.17982): sampling its prompts, measuring its sixteen dimensions, and adding them up.

Seven dimensions are computed here, from weights given by path or hub name; the others by the `vbench` package in an
environment of its own. Facts and constants are those of the repository Vchitect/VBench at commit 45e79ec; where
arvid does otherwise, the module says so.
"""
