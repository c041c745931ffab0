"""Decoding speed of next-block prediction against block and batch size, with its memory bound.

Continues the first two of 5 latent frames: 768 tokens after 512, with 64,000 ids, top-k 16,000 and top-p 0.9, as NBP
(arXiv 2502.07737) samples Kinetics-600. For each block and batch size:

  tokens / s        of all clips together, prefix included
  forward, sampler  shares of the time: network with logits, and sampling from the logits
  bound             tokens / s if a step only read weights and filled cache once, at this machine's copy speed
  steps' time       as a multiple of the bound; small networks on CPUs are limited by arithmetic instead

Then one token at a time is compared with `generate` of transformers on a GPT-2 of the same shape, with a static cache
if available. Weights are random, which does not change the time.

scales:
  tiny    seconds, to try the script
  demo    a CPU: 2 layers of width 128
  paper   a GPU: the paper's 1.2 billion (24 layers of width 2048) in bfloat16

On a CPU the page begins with the instruction set and the speed of a matrix product in float32 and bfloat16, since
speeds depend on them. With one thread (--threads 1, the default) seconds are CPU time, so other work on the machine has
little effect. With more threads, and on a GPU, they are wall time.

examples:
  arvid bench speed/next_block
  arvid bench speed/next_block --scale paper --compile --out runs/speed-h100

Writes table.md and results.json to --out.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from arvid.contracts import (
    Condition,
    ContextSpec,
    Request,
    SamplingOptions,
    Size,
    TokenGrid,
    TokenSpec,
    UserError,
)
from arvid.experiments.paper import script_parser, table, write_page
from arvid.hardware import cpu_summary
from arvid.nn.heads import categorical
from arvid.nn.heads.categorical import CategoricalSampling
from arvid.paradigms.next_block import NextBlock
from arvid.paradigms.next_block.layout import Block
from arvid.ranges import at_least

Result = dict[str, Any]

GRID = TokenGrid(5, 16, 16)
PAPER_SPEEDUP = 11.1
"""Of block 16 over block 1 on one A100 at 700 million parameters: table 2, 8.89 frames / s against 0.80."""
MOST_OF_BOUND = 1.5
COPIED_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What is timed."""

    size: Size
    vocab_size: int = 64_000
    grid: TokenGrid = GRID
    given: int = 2
    """Latent frames that are continued."""
    blocks: tuple[Block, ...] = ((1, 1, 1), (1, 1, 16), (1, 4, 16), (1, 16, 16))
    batches: tuple[int, ...] = (1, 4, 16)
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    sampling: CategoricalSampling = CategoricalSampling(top_k=16_000, top_p=0.9)


SCALES = {
    "tiny": Scale(
        size=Size(dim=16, depth=1, num_heads=2),
        vocab_size=100,
        grid=TokenGrid(4, 4, 4),
        blocks=((1, 1, 1), (1, 1, 4), (1, 4, 4)),
        batches=(1, 2),
        sampling=CategoricalSampling(top_k=25, top_p=0.9),
    ),
    "demo": Scale(size=Size(dim=128, depth=2, num_heads=4)),
    "paper": Scale(
        size=Size(dim=2048, depth=24, num_heads=32),
        device="cuda",
        dtype=torch.bfloat16,
    ),
}


def main() -> None:
    """Measure, print, write."""
    options = parse_arguments()
    scale = SCALES[options.scale]
    own = NextBlock.options_for("discrete")
    sampling = own.of(scale.sampling).replace(compiled=options.compile)
    if scale.device == "cuda" and not torch.cuda.is_available():
        raise UserError("This scale needs a GPU and there is none here. Take --scale demo.")
    torch.set_num_threads(options.threads)
    watch = Watch(scale.device, options.threads)
    started = time.monotonic()
    bandwidth = copy_bandwidth(scale.device, watch)
    cases = [(block, batch) for block in scale.blocks for batch in options.batch or scale.batches]
    rows = [
        measure(scale, block, batch, sampling, bandwidth, watch)
        for block, batch in tqdm(cases, "cases", disable=None)
    ]
    greedy = sampling.replace(temperature=0.0)
    beside = [against_transformers(scale, way, watch) for way in (greedy, sampling)]
    report = {
        "scale": options.scale,
        "network": f"{scale.size.depth} layers of width {scale.size.dim}",
        "dtype": str(scale.dtype).removeprefix("torch."),
        "vocabulary": scale.vocab_size,
        "compiled": options.compile,
        "threads": options.threads,
        "clock": watch.name,
        "copy_gigabytes_per_second": bandwidth / 1e9,
        "rows": rows,
        "transformers": beside,
        "checks": checks(options.scale, rows, beside),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "wall_seconds": round(time.monotonic() - started, 1),
    }
    notes = [cpu_summary()] if scale.device == "cpu" else []
    write_page(options.out, "Speed of next-block prediction", page(report), notes, report)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_parser(__doc__, "runs/speed-next-block", SCALES)
    parser.add_argument(
        "--batch", type=at_least(1).integer, action="append", help="clips at once; may be repeated"
    )
    parser.add_argument("--compile", action="store_true", help="compile the step (GPU)")
    parser.add_argument("--threads", type=at_least(1).integer, default=1, help="of a CPU")
    return parser.parse_args()


class Watch:
    """Clock: CPU time with one thread, else wall time after the device has finished."""

    def __init__(self, device: str, threads: int) -> None:
        self.on_gpu = device == "cuda"
        alone = threads == 1 and not self.on_gpu
        self.read = time.process_time if alone else time.perf_counter
        self.name = "processor time of one thread" if alone else "wall clock"

    def now(self) -> float:
        """In seconds."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return self.read()

    def time(self, function: Callable[[], object]) -> float:
        """Seconds of a call."""
        started = self.now()
        function()
        return self.now() - started


def copy_bandwidth(device: str, watch: Watch) -> float:
    """Bytes per second that are read and written when a large tensor is copied; the best of five times."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source).copy_(source)
    return 2 * COPIED_BYTES / min(watch.time(lambda: target.copy_(source)) for _ in range(5))


# One row


@torch.no_grad()
def measure(
    scale: Scale,
    block: Block,
    batch: int,
    sampling: SamplingOptions,
    bandwidth: float,
    watch: Watch,
) -> Result:
    """Speed, shares and bound of a block and batch size."""
    model = build(scale, block)
    num_frames = scale.grid.t
    generate(model, scale, batch, sampling, num_frames)  # warms up, captures graphs
    with timed_draws(watch) as drawing:
        seconds = watch.time(lambda: generate(model, scale, batch, sampling, num_frames))
    share = sum(drawing) / seconds
    if watch.on_gpu:  # which does not wait between steps if nobody looks
        seconds = watch.time(lambda: generate(model, scale, batch, sampling, num_frames))
    steps = model.num_evaluations(scale.grid, prefix_frames=scale.given)["transformer"]
    bound = steps * bytes_per_step(model, scale, batch) / bandwidth
    num_tokens = batch * (scale.grid.t - scale.given) * scale.grid.tokens_per_frame
    return {
        "block": math.prod(block),
        "batch": batch,
        "steps": steps,
        "tokens_per_second": num_tokens / seconds,
        "forward_share": 1 - share,
        "sampler_share": share,
        "bound_tokens_per_second": num_tokens / bound,
        "times_bound": seconds / bound,
    }


def build(scale: Scale, block: Block) -> NextBlock:
    """A network with random weights."""
    torch.manual_seed(0)
    spec = TokenSpec("discrete", scale.vocab_size, (4, 8, 8), True)
    model = NextBlock(spec, scale.grid, ContextSpec(), scale.size, block=block, start="none")
    return model.to(scale.device, scale.dtype).eval()


def generate(
    model: NextBlock, scale: Scale, batch: int, sampling: SamplingOptions, num_frames: int
) -> Tensor:
    """Clips of so many latent frames, from random first ones."""
    height, width = scale.grid.h, scale.grid.w
    prefix = torch.randint(
        scale.vocab_size, (batch, scale.given, height, width), device=scale.device
    )
    grid = TokenGrid(num_frames, height, width)
    request = Request(Condition(), grid, batch_size=batch, prefix=prefix, options=sampling)
    return model.generate(request)


@contextmanager
def timed_draws(watch: Watch) -> Iterator[list[float]]:
    """Yields a list that is filled with the seconds of each draw."""
    seconds: list[float] = []
    usual = categorical.draw

    def draw(*given: Any) -> Tensor:
        started = watch.now()
        drawn = usual(*given)
        seconds.append(watch.now() - started)
        return drawn

    categorical.draw = draw  # type: ignore[assignment]
    try:
        yield seconds
    finally:
        categorical.draw = usual


def bytes_per_step(model: NextBlock, scale: Scale, batch: int) -> float:
    """Weights, and keys and values of the places before it, in the mean over steps."""
    read = [*model.transformer.parameters(), *model.norm.parameters(), *model.head.parameters()]
    weights = sum(p.numel() for p in read)
    known = list(model.layout.steps(scale.given * scale.grid.tokens_per_frame))
    places = sum(model.layout.length(k) for k in known) / len(known)
    cache = 2 * scale.size.depth * scale.size.dim * batch * places
    return (weights + cache) * scale.dtype.itemsize


# Beside transformers


@torch.no_grad()
def against_transformers(scale: Scale, sampling: SamplingOptions, watch: Watch) -> Result:
    """Tokens per second of one latent frame, token by token, in turns."""
    model, other = build(scale, scale.blocks[0]), build_gpt2(scale)
    frame = scale.grid.tokens_per_frame
    prompt = torch.randint(scale.vocab_size, (1, scale.given * frame), device=scale.device)
    cache = "static" if other._can_compile_fullgraph else "dynamic"
    filters = CategoricalSampling.of(sampling)
    greedy = filters.temperature == 0
    drawn = {} if greedy else {"top_k": filters.top_k, "top_p": filters.top_p}

    def ours() -> Tensor:
        return generate(model, scale, 1, sampling, scale.given + 1)

    def theirs() -> Tensor:
        found: Tensor = other.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=not greedy,
            max_new_tokens=frame,
            min_new_tokens=frame,
            cache_implementation=cache,
            **drawn,
        )
        return found

    for _ in range(2):  # the first time warms up
        own, its = frame / watch.time(ours), frame / watch.time(theirs)
    return {
        "sampling": "greedy" if greedy else f"top-k {filters.top_k}, top-p {filters.top_p}",
        "cache": cache,
        "tokens_per_second": own,
        "transformers_tokens_per_second": its,
        "ratio": own / its,
    }


def build_gpt2(scale: Scale) -> GPT2LMHeadModel:
    """Of the same shape, with random weights and an output matrix of its own."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=scale.vocab_size,
        n_positions=scale.grid.num_tokens,
        n_embd=scale.size.dim,
        n_layer=scale.size.depth,
        n_head=scale.size.num_heads,
        activation_function="gelu",
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config).to(scale.device, scale.dtype).eval()


# The page


def checks(scale: str, rows: list[Result], beside: list[Result]) -> list[Result]:
    """What the numbers should be."""
    found = [
        check(f"token by token, {r['sampling']}: times transformers' speed", r["ratio"], 1.0, True)
        for r in beside
    ]
    if scale != "paper":
        return found
    fastest = {r["block"]: r for r in reversed(rows)}  # by the first batch size
    speedup = fastest[16]["tokens_per_second"] / fastest[1]["tokens_per_second"]
    bound = fastest[1]["times_bound"]
    return [
        *found,
        check("block 16: times the speed of block 1", speedup, PAPER_SPEEDUP, True),
        check("token by token: times the bound's time", bound, MOST_OF_BOUND, False),
    ]


def check(name: str, value: float, target: float, at_least: bool) -> Result:
    """A value and whether it is on the right side of its target."""
    holds = value >= target if at_least else value <= target
    return {"check": name, "value": value, "target": target, "least": at_least, "holds": holds}


def page(report: Result) -> list[str]:
    """Lines below the title."""
    compiled = ", steps compiled" if report["compiled"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    speeds = [
        [
            str(r["block"]),
            str(r["batch"]),
            str(r["steps"]),
            f"{r['tokens_per_second']:,.0f}",
            f"{r['forward_share']:.0%}",
            f"{r['sampler_share']:.0%}",
            f"{r['bound_tokens_per_second']:,.0f}",
            f"{r['times_bound']:.1f}",
        ]
        for r in report["rows"]
    ]
    beside = [
        [
            f"{r['sampling']}; its cache is {r['cache']}",
            f"{r['tokens_per_second']:,.0f}",
            f"{r['transformers_tokens_per_second']:,.0f}",
            f"{r['ratio']:.2f}",
        ]
        for r in report["transformers"]
    ]
    checked = [
        [
            c["check"],
            f"{c['value']:.2f}",
            f"{'≥' if c['least'] else '≤'} {c['target']:g}",
            "yes" if c["holds"] else "NO",
        ]
        for c in report["checks"]
    ]
    return [
        f"{report['network']}, {report['vocabulary']:,} ids, {report['dtype']}{compiled}, "
        f"`--scale {report['scale']}`; {versions}. Copies {report['copy_gigabytes_per_second']:.1f} GB/s. "
        f"Times are {report['clock']}.",
        "",
        *table(
            ("block", "clips", "steps", "tokens / s", "forward", "sampler", "bound", "steps' time"),
            speeds,
        ),
        "",
        "One token at a time, one clip, beside a GPT-2 of the same shape in transformers:",
        "",
        *table(("sampling", "tokens / s", "its tokens / s", "ratio"), beside),
        "",
        *table(("check", "measured", "target", "holds"), checked),
    ]


if __name__ == "__main__":
    main()
