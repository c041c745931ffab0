"""What one GPU shows in a quarter of an hour: memory against plan, utilisation, graphs, decoding, encoding.

  tests      the tests that need a GPU
  step       training steps of NOVA and next-block prediction: plain, with checkpointed blocks, compiled. FLOP/s as a
             share of the rate of a large matrix product; peak memory beside that of the plan (weights, gradients and
             moments, and the peak of a step on fake tensors)
  clip       a clip of NOVA, when each kernel is launched by itself, with CUDA graphs, and with compiled blocks
  decoding   next-block prediction, blocks of 1 and 16 tokens: seconds beside those of reading weights and cache. A
             long cache is that of the second half of a long clip: of 4,352 to 8,704 tokens in scale paper
  encoding   clips per second of the tokenizer in float32, TF32 and bfloat16. The share of ids that change is that of
             the small trained tokenizer of the sprites

A part that fails or comes too late is a row that says so. Weights are random unless said otherwise.

scales:
  smoke   tiny networks on a CPU: whether the script runs
  paper   NOVA 0.6B at 33 frames of 768x480, next-block prediction 700M at 17 frames of 128x128, on a GPU

examples:
  arvid bench speed/gpu --scale smoke
  arvid bench speed/gpu --scale paper --out runs/speed-gpu

Writes table.md and results.json to --out.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arvid import registry
from arvid.benchmarks.speed import next_block, nova
from arvid.contracts import Condition, Size, TokenGrid, UserError, VideoTokenizer
from arvid.data.collate import normalise
from arvid.data.sprites import Sprites
from arvid.experiments.paper import script_parser, table, write_page
from arvid.flops import flop_counter
from arvid.hardware import cpu_summary
from arvid.metrics.inference import full_precision
from arvid.nn.attention import TransformerBlock
from arvid.nn.causal_conv import Backbone
from arvid.nn.checkpointing import Checkpointing, set_checkpointing
from arvid.paradigms.next_block import NextBlock
from arvid.planning.fake import FakeNetworks, without_storage
from arvid.planning.memory import count_state
from arvid.planning.step import measure_step
from arvid.ranges import above
from arvid.training.export import load_tokenizer

Row = dict[str, Any]
GIB = 2**30
TRAINED = "sprites-magvit_fsq"
"""The tokenizer whose ids are compared."""
WAYS: tuple[tuple[str, Checkpointing, bool], ...] = (
    ("plain", "none", False),
    ("checkpointed blocks", "blocks", False),
    ("compiled blocks", "none", True),
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of everything that is measured, and where."""

    device: str
    precision: str
    """Lightning's `precision` of the training steps."""
    nova: nova.Scale
    nova_batches: tuple[int, ...]
    next_block: next_block.Scale
    next_block_batch: int
    long_frames: int
    """Latent frames of the clip that is decoded at a long cache."""
    tokenizer: dict[str, Any]
    """Options of the tokenizer whose encoder is timed."""
    clip_shape: tuple[int, int, int]
    """Frames, height and width of the clips that it encodes."""
    clips: int
    """Clips that it encodes at once."""
    rounds: int
    """Number of timings of each row. The best one counts."""


SMALL = Size(dim=32, depth=3, num_heads=2, head_dim=32, head_depth=1)
SMOKE = Scale(
    device="cpu",
    precision="32-true",
    nova=dataclasses.replace(
        nova.DEMO, size=SMALL, grid=TokenGrid(2, 8, 8), num_sets=3, diffusion_steps=2, matrix=64
    ),
    nova_batches=(1, 2),
    next_block=next_block.SCALES["tiny"],
    next_block_batch=2,
    long_frames=6,
    tokenizer={
        "backbone": Backbone(
            base=8,
            multipliers=(1, 2),
            strides=((2, 2, 2),),
            num_units=1,
            num_mid_units=1,
            num_groups=2,
        ),
        "levels": (4, 4),
    },
    clip_shape=(5, 16, 16),
    clips=2,
    rounds=1,
)
PAPER = Scale(
    device="cuda",
    precision="bf16-mixed",
    nova=nova.PAPER,
    nova_batches=(1, 3),
    next_block=dataclasses.replace(
        next_block.SCALES["paper"],
        size=Size(dim=1536, depth=24, num_heads=16),
        blocks=((1, 1, 1), (1, 1, 16)),
    ),
    next_block_batch=8,
    long_frames=34,
    tokenizer={},
    clip_shape=(17, 128, 128),
    clips=8,
    rounds=3,
)
SCALES = {"smoke": SMOKE, "paper": PAPER}


def main() -> None:
    """Measure part by part, print, write."""
    parser = script_parser(__doc__, "runs/speed-gpu", SCALES)
    parser.add_argument(
        "--minutes", type=above(0).number, default=14, help="later parts are left out after these"
    )
    options = parser.parse_args()
    scale = SCALES[options.scale]
    if scale.device == "cuda" and not torch.cuda.is_available():
        raise UserError("Scale paper needs a GPU; --scale smoke runs on a CPU.")
    torch.set_float32_matmul_precision("high")  # as `arvid fit` does
    started = time.monotonic()
    rate = nova.throughput(scale.nova)
    rows = []
    for name, part in parts(scale, rate):
        if time.monotonic() - started > 60 * options.minutes:
            rows.append({"what": name, "failed": "left out: no time"})
        else:
            rows += measured(name, part)
    report = {
        "scale": options.scale,
        "flops_per_second": rate,
        "rows": rows,
        "torch": torch.__version__,
        "wall_seconds": round(time.monotonic() - started, 1),
    }
    notes = [cpu_summary()] if scale.device == "cpu" else []
    write_page(options.out, f"One GPU, scale {options.scale}", page(report), notes, report)


def parts(scale: Scale, rate: float) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """Name of each part, and what measures its rows. Short and important ones come first."""
    if scale.device == "cuda":
        yield "tests", gpu_tests
    for way in WAYS:
        for batch in scale.nova_batches:
            run = partial(nova_step, scale, batch, way, rate)
            yield f"step: NOVA, batch {batch}, {way[0]}", run
        run = partial(next_block_step, scale, way, rate)
        yield f"step: next block, batch {scale.next_block_batch}, {way[0]}", run
    for batch in scale.nova_batches:
        yield f"clip: NOVA, batch {batch}", partial(clips, scale, batch)
    for block in scale.next_block.blocks[:2]:
        yield f"decoding: block {block}", partial(decoding, scale, scale.next_block, block)
    for block in scale.next_block.blocks[:2]:
        yield f"decoding: block {block}, long cache", partial(decoding, scale, long(scale), block)
    yield "encoding", partial(encoding, scale)
    yield "ids", partial(changed_ids, scale)


def measured(name: str, part: Callable[[], list[Row]]) -> list[Row]:
    """The rows of a part; one that says why, if it fails."""
    try:
        rows = part()
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
        why = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        rows = [{"failed": why}]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return [{"what": name, **row} for row in rows]


def gpu_tests() -> list[Row]:
    """The outcome of tests/test_gpu.py, if this is a checkout."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/test_gpu.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    return [{"note": (done.stdout.splitlines() or ["no output"])[-1]}]


# Training steps


def nova_step(
    scale: Scale, batch: int, way: tuple[str, Checkpointing, bool], rate: float
) -> list[Row]:
    """A step of NOVA; its FLOPs are those of the mean share of masked tokens."""
    given = scale.nova

    def loss(model: Any, device: str) -> Tensor:
        tokens = torch.randn(batch, *shape_of(given.grid), nova.SPEC.size, device=device)
        return loss_of(model, tokens, given.condition(batch, device), scale.precision)

    flops = nova.training_flops(given, batch)["all"]
    return [training(scale, given.build, loss, way, flops, rate)]


def next_block_step(scale: Scale, way: tuple[str, Checkpointing, bool], rate: float) -> list[Row]:
    """A step of next-block prediction with the second of the blocks."""
    given = dataclasses.replace(scale.next_block, device="cpu", dtype=torch.float32)

    def build() -> nn.Module:
        return next_block.build(given, given.blocks[1])

    def loss(model: Any, device: str) -> Tensor:
        shape = (scale.next_block_batch, *shape_of(given.grid))
        tokens = torch.zeros(shape, dtype=torch.long, device=device)
        return loss_of(model, tokens, Condition(), scale.precision)

    fakes = FakeNetworks()
    with without_storage():
        model = build()
    fakes.take(model)
    with fakes.running(), flop_counter() as counter:
        loss(model, "cpu").backward()
    return [training(scale, build, loss, way, float(counter.get_total_flops()), rate)]


def shape_of(grid: TokenGrid) -> tuple[int, int, int]:
    """Latent frames, rows and columns."""
    return grid.t, grid.h, grid.w


def loss_of(model: Any, tokens: Tensor, condition: Condition, precision: str) -> Tensor:
    """The loss in training."""
    low = precision.startswith("bf16") and tokens.device.type == "cuda"
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=low):
        loss: Tensor = model.train().loss(tokens, condition)["loss"]
    return loss


def training(
    scale: Scale,
    build: Callable[[], nn.Module],
    loss: Callable[[nn.Module, str], Tensor],
    way: tuple[str, Checkpointing, bool],
    flops: float,
    rate: float,
) -> Row:
    """Seconds, utilisation and memory of a step."""
    _, checkpointing, compiled = way
    planned = planned_memory(scale, build, loss, checkpointing)
    model = build().to(scale.device)
    set_checkpointing(model, checkpointing)
    if compiled:
        for block in (m for m in model.modules() if isinstance(m, TransformerBlock)):
            block.compile(dynamic=True)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        loss(model, scale.device).backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds, peak = best_of(scale, step)
    return {
        "seconds": seconds,
        "utilisation": flops / seconds / rate,
        "peak_gib": peak,
        "planned_gib": planned,
    }


def planned_memory(
    scale: Scale,
    build: Callable[[], nn.Module],
    loss: Callable[[nn.Module, str], Tensor],
    checkpointing: Checkpointing,
) -> float:
    """Peak in GiB that `arvid plan` states: weights, gradients, moments, and the peak of a step."""
    fakes = FakeNetworks(scale.precision)
    with without_storage():
        model = build()
    fakes.take(model)
    set_checkpointing(model, checkpointing)
    with fakes.running():
        cost = measure_step(model, lambda: [loss(model, "cpu")])
    return (count_state(model, muon=False, averages=False).per_gpu("DDP", 1) + cost.peak) / GIB


def best_of(scale: Scale, run: Callable[[], object]) -> tuple[float, float | None]:
    """Seconds of the fastest of some runs after one that warms up, and the peak memory of a GPU in GiB."""
    read = nova.clock(scale.device)
    run()
    if scale.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(scale.rounds):
        begun = read()
        run()
        times.append(read() - begun)
    peak = torch.cuda.max_memory_allocated() / GIB if scale.device == "cuda" else None
    return min(times), peak


# Sampling


def clips(scale: Scale, batch: int) -> list[Row]:
    """Seconds of a batch of clips in three ways."""
    given = scale.nova
    model = given.build().to(scale.device).eval().to(getattr(torch, given.dtype))
    read = nova.clock(scale.device)
    rows = []
    for name, graphs in (("one by one", False), ("graphs", True), ("compiled, graphs", True)):
        if "compiled" in name:
            nova.compile_blocks(model)
        run = partial(nova.draw, model, given, batch, read, graphs=graphs)
        seconds, peak = best_of(scale, run)
        rows.append({"note": name, "seconds": seconds, "peak_gib": peak})
    return rows


def long(scale: Scale) -> next_block.Scale:
    """The second half of a long clip."""
    grid = dataclasses.replace(scale.next_block.grid, t=scale.long_frames)
    return dataclasses.replace(scale.next_block, grid=grid, given=scale.long_frames // 2)


def decoding(scale: Scale, given: next_block.Scale, block: tuple[int, int, int]) -> list[Row]:
    """Tokens per second, and the ratio to the time of reading weights and cache."""
    watch = next_block.Watch(scale.device, 1)
    sampling = NextBlock.options_for("discrete").of(given.sampling)
    bandwidth = next_block.copy_bandwidth(scale.device, watch)
    found = next_block.measure(given, block, 1, sampling, bandwidth, watch)
    speed = found["tokens_per_second"]
    return [{"note": f"{speed:.4g} tokens / s", "times_bound": found["times_bound"]}]


# Encoding

PRECISIONS: dict[str, Callable[[str], AbstractContextManager[Any]]] = {
    "float32": full_precision,
    "TF32": lambda device: nullcontext(),
    "bfloat16": lambda device: torch.autocast(device, torch.bfloat16),
}


def encoding(scale: Scale) -> list[Row]:
    """Clips per second in each precision."""
    tokenizer: VideoTokenizer = registry.get("tokenizers", "magvit_fsq")(**scale.tokenizer)
    tokenizer.to(scale.device).eval().requires_grad_(False)
    video = torch.randn(scale.clips, 3, *scale.clip_shape, device=scale.device).clamp(-1, 1)
    rows = []
    for name, precision in PRECISIONS.items():
        with torch.no_grad(), precision(scale.device):
            seconds, peak = best_of(scale, lambda: tokenizer.encode(video))
        speed = f"{name}: {scale.clips / seconds:.4g} clips / s"
        rows.append({"note": speed, "seconds": seconds, "peak_gib": peak})
    return rows


def changed_ids(scale: Scale) -> list[Row]:
    """Share of the ids of sprites that differ from those in float32."""
    tokenizer = load_tokenizer(TRAINED)
    tokenizer.to(scale.device).eval()
    sprites = Sprites(num_clips=8)
    video = torch.stack([normalise(sprites[i].video) for i in range(8)]).to(scale.device)
    ids = {}
    for name, precision in PRECISIONS.items():
        with torch.no_grad(), precision(scale.device):
            ids[name] = tokenizer.encode(video)
    shares = {n: (x != ids["float32"]).float().mean().item() for n, x in ids.items()}
    return [{"note": f"{n}: {share:.2%} of ids change"} for n, share in shares.items()]


# The report

COLUMNS = {
    "seconds": "seconds",
    "utilisation": "utilisation",
    "peak_gib": "peak, GiB",
    "planned_gib": "planned, GiB",
    "times_bound": "times the bound",
}


def page(report: Row) -> list[str]:
    """Lines below the title: a table of all rows."""
    lines = [
        f"A large matrix product reaches {report['flops_per_second'] / 1e12:.4g} TFLOP/s. "
        f"All of it took {report['wall_seconds']} seconds.",
        "",
    ]
    rows = [
        [row["what"], row.get("failed") or row.get("note", ""), *(row.get(c) for c in COLUMNS)]
        for row in report["rows"]
    ]
    return lines + table(["part", "", *COLUMNS.values()], rows)


if __name__ == "__main__":
    main()
