"""VBench (arXiv:2311.17982): sampling of its prompts, its sixteen dimensions, and the total scores.

Seven dimensions are computed here, with weights given by path or hub name. The others are computed by the `vbench`
package in its own environment. Facts and constants come from the repository Vchitect/VBench at commit 45e79ec. Where
arvid differs, the module says so.
"""
