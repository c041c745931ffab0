"""Run by the Python of VBench's own environment, where there is no arvid: one dimension of the standard suite.

Arguments: VBench_full_info.json, folder of videos, folder of the result, dimension.
"""

import sys


def main(suite: str, videos: str, out: str, dimension: str) -> None:
    """Score one dimension with VBench's own class, which writes OUT/<dimension>_eval_results.json."""
    import torch
    from vbench import VBench  # type: ignore[import-not-found]

    # a torch.device and not its name, as VBench's own command has it: motion smoothness tells them apart
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    VBench(device, suite, out).evaluate(
        videos_path=videos, name=dimension, dimension_list=[dimension], mode="vbench_standard"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
