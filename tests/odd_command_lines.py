"""Odd command lines over all commands of arvid: what people mistype, scripts leave empty, and worse.

python tests/odd_command_lines.py  # prints them
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Sequence

SEED = 13
NUM_LINES = 500

NUMBERS = ("0", "-1", "nan", "inf", "-inf", "1e400", "0.5", "1" + "0" * 30, ".nan", "-.inf")
WORDS = (
    "",
    "x",
    "é漢字🙂",
    "null",
    "true",
    "[]",
    "{{}}",
    "[1, 2",
    "a: b: c",
    "-",
    "\x01",
    "%s %(x)s",
)
PATHS = (
    "{tmp}/none",  # nothing there
    "{tmp}",  # a folder
    "{junk}",  # bytes of no format
    "{junk}/below",  # below a file
    "{empty}",  # a file of 0 bytes
    "/proc/none",  # nobody may write there
    "{tmp}/" + "n" * 300,  # longer than file systems allow
)
OTHER_FILES = (  # as they should be, but not for this
    "{video}",
    "{videos}",
    "{run}",
    "{run}/checkpoints/last.ckpt",
    "{suite}",
    "{few}",
    "{protocol}",
)
LIKELY = ("1", "2", "3", "7", "1e-30", "1e30")
"""Numbers that may be taken, and then do not fit something else."""
VALUES = (*NUMBERS, *NUMBERS, *WORDS, *PATHS, *OTHER_FILES, *LIKELY, *LIKELY)
"""Numbers twice: most options are some."""
STARTS_PROCESSES = ("trainer.devices", "trainer.num_nodes", "data.num_workers")
"""Options that get no number from above 1: processes of their own would be tests of their own."""

CONFIGS = ("--config=settings/sprites", "--config=paradigms/{paradigm}", "--config=sizes/debug")
TINY = (
    "--data.train.init_args.num_clips=4",
    "--data.val.init_args.num_clips=4",
    "--data.clips_per_step=2",
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=1",
)
SAMPLING = (
    *("guidance", "temperature", "top-k", "top-p", "last-temperature", "rounds", "num-sets"),
    *("diffusion-steps", "overlap", "guidance-min", "guidance-trunc", "guidance-renorm"),
    *("image-guidance", "flow-shift", "dtype"),
)
SETTING = (
    *(
        "seed_everything",
        "save_every_n_steps",
        "keep_checkpoints",
        "ckpt_path",
        "run",
        "config",
        "model",
        "data",
    ),
    *("data.batch_size", "data.num_workers", "data.seed", "data.posterior", "data.train"),
    *("data.train.class_path", "data.val.class_path"),
    *(f"data.train.init_args.{name}" for name in ("num_clips", "seed", "num_frames", "size")),
    *(f"data.val.init_args.{name}" for name in ("second", "textured", "sizes", "nothing")),
    "model.class_path",
    *(f"model.init_args.size.{name}" for name in ("dim", "depth", "num_heads", "head_dim")),
    *("model.init_args.size.head_depth", "model.init_args.token_type", "model.init_args.text"),
    *("model.init_args.tokenizers.continuous", "model.init_args.tokenizers.discrete"),
    *(f"model.init_args.optimizer.{name}" for name in ("lr", "betas", "weight_decay", "muon")),
    *("model.init_args.optimizer.warmup_steps", "model.init_args.optimizer.schedule"),
    *("model.init_args.sampling.top_k", "model.init_args.sampling.guidance"),
    "model.init_args.paradigm",
    *(
        f"model.init_args.paradigm.init_args.{name}"
        for name in ("dropout", "condition_dropout", "num_sets", "patch", "scale_shift", "block")
    ),
    *("model.init_args.paradigm.init_args.diffusion.repeats", "print_config"),
    *(
        f"trainer.{name}"
        for name in (
            *("accelerator", "strategy", "devices", "num_nodes", "precision", "logger"),
            *("callbacks", "fast_dev_run", "max_epochs", "min_epochs", "min_steps", "max_time"),
            *(
                "max_steps",
                "limit_train_batches",
                "limit_val_batches",
                "overfit_batches",
                "benchmark",
            ),
            *("val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps"),
            *("log_every_n_steps", "accumulate_grad_batches", "gradient_clip_val"),
            *("gradient_clip_algorithm", "deterministic", "profiler", "default_root_dir"),
        )
    ),
)
SUITES = ("geneval", "t2i-compbench", "dpg-bench")

Command = tuple[tuple[str, ...], tuple[str, ...], int]
"""Arguments that work or nearly do, options that get odd values, how often the command is taken."""
COMMANDS: tuple[Command, ...] = (
    (("fit", *CONFIGS, *TINY, "--run={tmp}/new"), SETTING, 14),
    (("fit", *CONFIGS, *TINY, "--run={run}"), SETTING, 2),
    (("validate", *CONFIGS, *TINY, "--run={run}"), SETTING, 4),
    (("encode", *CONFIGS, "--config={few}"), ("config", "out", "shard"), 2),
    (
        ("reconstruct", "{video}", "--tokenizer=sprites-vae3d"),
        ("tokenizer", "out", "size", "frames"),
        3,
    ),
    (
        ("sample", "--checkpoint={run}", "--count=1", "--prompt=a red square"),
        (
            *("checkpoint", "prompt", "negative-prompt", "label", "motion", "first-frames"),
            *("num-first-frames", "frames", "count", "seed", "fps", "out", *SAMPLING),
        ),
        12,
    ),
    (
        ("evaluate", "{run}", "--protocol=sprites-generation", "--num-clips=2"),
        (
            *("protocol", "real", "real-list", "num-clips", "metric", "references", "out"),
            *("name", "dtype", "pipeline-options", "videos", "pipeline"),
        ),
        6,
    ),
    (("evaluate", "--videos={videos}", "--protocol={protocol}"), ("real", "out", "num-clips"), 3),
    (
        ("evaluate", "vbench", "sample", "{tmp}/row", "--suite={suite}", "--checkpoint={run}"),
        (
            *("suite", "dimension", "flickering-samples", "checkpoint", "rewritten", "frames"),
            *("motion", "fps", "seed", "shard", *SAMPLING),
        ),
        5,
    ),
    (
        ("evaluate", "vbench", "score", "{tmp}/row", "--suite={suite}"),
        ("suite", "dimension", "videos", "vbench-python", "dino", "raft", "flickering-samples"),
        2,
    ),
    (("evaluate", "vbench", "aggregate", "{run}"), ("suite",), 1),
    *(
        (
            (
                "evaluate",
                suite,
                "sample",
                "--checkpoint={run}",
                "--prompts={junk}",
                "--out={tmp}/r",
            ),
            (*("prompts", "out", "rewritten", "seed", "shard", "category", "pipeline-options"),),
            1,
        )
        for suite in SUITES
    ),
    *(
        (
            ("evaluate", suite, "score", "{run}", "--scorer={tmp}", "--scorer-python=python"),
            ("scorer", "scorer-python", "detector", "questions"),
            1,
        )
        for suite in SUITES
    ),
    *(
        (("evaluate", suite, "aggregate", "{run}"), ("name", "questions", "prompts"), 1)
        for suite in SUITES
    ),
    (("compare", "{run}"), ("out", "title"), 3),
    (("bench", "demo", "--tokenizer-steps=x"), ("scale", "out", "data", "title"), 1),
    (("bench", "nova/extrapolation", "--times=0"), ("scale", "run", "overlap"), 1),
    (("import", "nova", "{junk}", "{tmp}/new.ckpt"), ("tokenizer", "text"), 2),
    (("import", "nbp", "{junk}", "{tmp}/new.ckpt", "--tokenizer={junk}"), ("tokenizer", "text"), 2),
    (("import", "nbp-tokenizer", "{junk}", "{tmp}/new.safetensors"), ("tokenizer",), 2),
    (("export", "nova", "{run}", "{tmp}/exported"), ("half",), 2),
    (("data", "check", "settings/sprites", "paradigms/{paradigm}", "{few}"), ("config",), 2),
    (("doctor",), ("x",), 1),
)


def odd_command_lines(num: int = NUM_LINES, seed: int = SEED) -> list[tuple[str, ...]]:
    """Command lines with places to fill in: {run}, {paradigm}, {tmp}, {junk}, ...; the same for a seed."""
    rng = random.Random(seed)
    weights = [weight for *_, weight in COMMANDS]
    chosen = rng.choices(COMMANDS, weights, k=num)
    return [_make_odd(rng, words, options) for words, options, _ in chosen]


def _make_odd(rng: random.Random, words: Sequence[str], options: Sequence[str]) -> tuple[str, ...]:
    """One or two options with odd values; now and then a word is replaced, left out or given twice."""
    line = list(words)
    for _ in range(rng.choice((1, 1, 2))):
        option = rng.choice(options)
        values = [v for v in VALUES if v not in LIKELY[1:] or option not in STARTS_PROCESSES]
        line.append(f"--{option}={rng.choice(values)}")
    place = rng.randrange(len(line))
    change = rng.random()
    if change < 0.1:
        line[place] = rng.choice(VALUES)
    elif change < 0.15:
        del line[place]
    elif change < 0.2:
        line.insert(place, line[place])
    return tuple(line)


if __name__ == "__main__":
    for odd in odd_command_lines():
        print(shlex.join(("arvid", *odd)))
