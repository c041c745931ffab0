"""Score one dimension of VBench-I2V, VBench-Long or VBench-2.0. Runs in their Python environment, without arvid.

Arguments: name of the benchmark, folder of its code, ratio of the images, list of prompts, folder of videos, folder of
the result, dimension.
"""

import os
import sys


def main(
    name: str, root: str, ratio: str, suite: str, videos: str, out: str, dimension: str
) -> None:
    """Score one dimension with the benchmark's own class, which writes OUT/<dimension>_eval_results.json."""
    # The code reads some of its files by paths relative to its folder.
    os.chdir(root)
    sys.path.insert(0, root)
    import torch

    # a torch.device instead of its name, as in the benchmarks' own commands
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked = {"name": dimension, "dimension_list": [dimension]}
    if name == "vbench-i2v":
        from vbench2_beta_i2v import VBenchI2V  # type: ignore[import-not-found]

        VBenchI2V(device, suite, out).evaluate(
            videos_path=videos,
            resolution=ratio,
            imaging_quality_preprocessing_mode="longer",
            **asked,
        )
    elif name == "vbench-long":
        _take_videos_first()
        from vbench2_beta_long import VBenchLong  # type: ignore[import-not-found]

        VBenchLong(device, suite, out).evaluate(
            videos_path=videos,
            mode="long_vbench_standard",
            **_long_options(os.path.join(root, "vbench2_beta_long", "configs"), dimension),
            **asked,
        )
    else:
        from vbench2 import VBench2  # type: ignore[import-not-found]

        VBench2(device, suite, out).evaluate(videos_path=os.path.join(videos, dimension), **asked)


def _long_options(configs: str, dimension: str) -> "dict[str, object]":
    """The options of VBench-Long's own script, evaluate_long.sh, with --dev_flag."""
    return {
        "dev_flag": True,
        "static_filter_flag": dimension == "temporal_flickering",
        "num_of_samples_per_prompt": 5,
        "use_semantic_splitting": False,
        "clip_length_config": "clip_length_mix.yaml",
        "slow_fast_eval_config": os.path.join(configs, "slow_fast_params.yaml"),
        "sb_mapping_file_path": os.path.join(configs, "subject_mapping_table.yaml"),
        "bg_mapping_file_path": os.path.join(configs, "background_mapping_table.yaml"),
        "sb_clip2clip_feat_extractor": "dinov2",
        "bg_clip2clip_feat_extractor": "dreamsim",
        "w_inclip": 1.0,
        "w_clip2clip": 0.0,
        "imaging_quality_preprocessing_mode": "longer",
    }


def _take_videos_first() -> None:
    """List videos before folders. VBench-Long reads the suffix of the first entry, and writes folders beside videos."""
    listed = os.listdir

    def videos_first(path: str = ".") -> "list[str]":
        return sorted(listed(path), key=lambda entry: (not entry.endswith(".mp4"), entry))

    os.listdir = videos_first  # type: ignore[assignment]


if __name__ == "__main__":
    main(*sys.argv[1:])
