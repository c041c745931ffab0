"""Scores one dimension of the standard suite. Runs in VBench's own Python environment, without arvid.

Arguments: VBench_full_info.json, folder of videos, folder of the result, dimension.
"""

import sys


def main(suite: str, videos: str, out: str, dimension: str) -> None:
    """Score one dimension with VBench's own class, which writes OUT/<dimension>_eval_results.json."""
    import torch
    from vbench import VBench  # type: ignore[import-not-found]

    # a torch.device, not its name: motion smoothness treats them differently, and VBench's own command uses a device
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    VBench(device, suite, out).evaluate(
        videos_path=videos, name=dimension, dimension_list=[dimension], mode="vbench_standard"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
