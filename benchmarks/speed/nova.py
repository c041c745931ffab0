"""Time of NOVA's sampling and training steps by part, and its ratio to the compute bound.

The bound is the time for the counted FLOPs at the throughput of one large matrix product on the same machine. The
utilisation is the bound divided by the measured time. FLOPs are counted on the meta device. Attention counts in full,
even if a mask hides half of it. Weights are random, which does not change the time.

  as it is   the code of `arvid sample` and `arvid fit`, without CUDA graphs (see speed/gpu for these)
  compiled   the transformers' blocks and the diffusion MLP with torch.compile

Then single clips of other lengths and sizes, with the code as it is.

scales:
  demo    width 256, 4 + 8 layers, 5 latent frames of 32x32, 16 sets, 10 diffusion steps, in float32 on one thread of a
          CPU. Times are CPU time, so other work on the machine has little effect.
  paper   the published video model of 0.6 billion parameters at 33 frames of 768x480, 64 sets, 25 diffusion steps, on a
          GPU: sampling with weights in bfloat16, training in mixed precision
  appendix
          table 1 of the paper's appendix beside ours: 29 frames, 64 sets, 100 diffusion steps, guidance, 24 clips
          together. The published times are those of an A100 of 40 GB

examples:
  arvid bench speed/nova
  arvid bench speed/nova --scale paper --out runs/speed-nova-paper

Writes table.md and results.json to --out. Some minutes.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from arvid.contracts import (
    Condition,
    ContextSpec,
    Request,
    Size,
    TokenGrid,
    TokenSpec,
    UserError,
)
from arvid.experiments.paper import script_parser, table, write_page
from arvid.hardware import cpu_summary
from arvid.nn.attention import TransformerBlock
from arvid.nn.cuda_graph import without_graphs
from arvid.paradigms.nova import NOVA
from arvid.processes import best_device
from arvid.ranges import at_least

Result = dict[str, Any]
Amounts = dict[str, float]
"""Seconds or FLOPs of each part, and of all."""
Read = Callable[[], float]
"""Seconds or FLOPs that have passed so far."""

SPEC = TokenSpec("continuous", 4, (4, 8, 8), True)
GUIDANCE = 5.0
MASKED = 0.85
"""Share of the tokens that a training step masks: near the mean of the distribution it is drawn from, 0.87."""
PARTS = ("temporal layers", "spatial layers", "diffusion head")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A model, what it draws, and where."""

    device: str
    dtype: str
    size: Size
    grid: TokenGrid
    text: tuple[int, int]
    """Numbers of a text feature, and features of a prompt."""
    base_frames: int
    num_sets: int
    diffusion_steps: int
    other_grids: tuple[TokenGrid, ...]
    """Of the clips that are timed beside."""
    sampling_batches: tuple[int, ...]
    training_batches: tuple[int, ...]
    matrix: int
    """Side of the matrices whose product gives the bound."""

    def build(self) -> NOVA:
        """The model, with random weights."""
        torch.manual_seed(0)
        dim, length = self.text
        context = ContextSpec(text_dim=dim, text_len=length, conditions={"motion": 1})
        return NOVA(
            SPEC,
            self.grid,
            context,
            self.size,
            num_sets=self.num_sets,
            base_frames=self.base_frames,
            nulls="table",
        )

    def condition(self, batch: int, device: str) -> Condition:
        """Prompts that fill all places."""
        dim, length = self.text
        return Condition(
            text=torch.randn(batch, length, dim, device=device),
            text_mask=torch.ones(batch, length, dtype=torch.bool, device=device),
            values={"motion": torch.full((batch,), 5.0, device=device)},
        )


DEMO = Scale(
    device="cpu",
    dtype="float32",
    size=Size(dim=256, depth=12, num_heads=4, head_dim=320, head_depth=3),
    grid=TokenGrid(5, 32, 32),
    text=(64, 16),
    base_frames=8,
    num_sets=16,
    diffusion_steps=10,
    other_grids=tuple(TokenGrid(*g) for g in ((1, 32, 32), (3, 32, 32), (5, 16, 16), (5, 24, 24))),
    sampling_batches=(1,),
    training_batches=(2,),
    matrix=1024,
)
PAPER = Scale(
    device="cuda",
    dtype="bfloat16",
    size=Size(dim=1024, depth=48, num_heads=16, head_dim=1280, head_depth=3),
    grid=TokenGrid(9, 60, 96),
    text=(2560, 256),
    base_frames=16,
    num_sets=64,
    diffusion_steps=25,
    other_grids=tuple(TokenGrid(*g) for g in ((1, 60, 96), (3, 60, 96), (9, 32, 32), (9, 64, 64))),
    sampling_batches=(1, 24),
    training_batches=(1, 4, 24),
    matrix=8192,
)
APPENDIX = dataclasses.replace(
    PAPER,
    grid=TokenGrid(8, 60, 96),
    diffusion_steps=100,
    other_grids=(),
    sampling_batches=(24,),
    training_batches=(),
)
SCALES = {"demo": DEMO, "paper": PAPER, "appendix": APPENDIX}
PUBLISHED = {"temporal layers": 0.03, "spatial layers and head": 11.97, "all": 12.0}
"""Seconds of a clip of 29x768x480 in table 1 of the appendix, in batches of 24 on an A100 (40 GB). It names temporal
and spatial layers; the head belongs to the latter. Sets and diffusion steps are the paper's defaults."""


def main() -> None:
    """Measure every case, print, write."""
    options = parse_arguments()
    scale = SCALES[options.scale]
    if scale.device == "cuda" and str(best_device()) != "cuda":
        raise UserError(f"Scale {options.scale} needs a GPU; --scale demo runs on a CPU.")
    if scale.device == "cpu":
        torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # with and without a cache, for each number of passes
    started = time.monotonic()
    ways = ("as it is",) if options.no_compile else ("as it is", "compiled")
    report = {
        "scale": options.scale,
        "model": asdict(scale),
        "parameters": sum(p.numel() for p in on_meta(scale).parameters()),
        "flops_per_second": throughput(scale),
        "cases": [
            case(scale, kind, batch, ways, options.rounds)
            for kind, batches in (
                ("sampling", scale.sampling_batches),
                ("training", scale.training_batches),
            )
            for batch in batches
        ],
        "clips": [
            one_clip(scale, grid, options.rounds) for grid in (*scale.other_grids, scale.grid)
        ],
        "torch": torch.__version__,
        "wall_seconds": round(time.monotonic() - started, 1),
    }
    notes = [cpu_summary()] if scale.device == "cpu" else []
    write_page(options.out, f"Speed of NOVA, scale {options.scale}", page(report), notes, report)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_parser(__doc__, "runs/speed-nova", SCALES)
    parser.add_argument(
        "--rounds", type=at_least(1).integer, default=2, help="of timing; the best one counts"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave compiling out")
    return parser.parse_args()


def case(scale: Scale, kind: str, batch: int, ways: tuple[str, ...], rounds: int) -> Result:
    """FLOPs of one clip drawn or one step trained, and what each way takes for it, in turns."""
    flops = sampling_flops(scale, batch) if kind == "sampling" else training_flops(scale, batch)
    found: Result = {"kind": kind, "batch": batch, "flops": flops, "ways": {}, "failed": {}}
    works = build_works(scale, kind, batch, ways)
    for i in range(rounds + 1):
        for way in [way for way in works if way not in found["failed"]]:
            try:
                measured = measure(works[way], scale.device)
            except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:
                # out of memory, or the compiler: a row of the table like others
                why = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
                found["failed"][way] = why
                found["ways"].pop(way, None)
                continue
            best = found["ways"].get(way)
            slower = best and best["seconds"]["all"] < measured["seconds"]["all"]
            if i <= 1 or not slower:  # round 0 warms up
                found["ways"][way] = measured
    return found


def one_clip(scale: Scale, grid: TokenGrid, rounds: int) -> Result:
    """Seconds of each part of a clip of another length or size, as it is."""
    works = build_works(dataclasses.replace(scale, grid=grid), "sampling", 1, ("as it is",))
    found = [measure(works["as it is"], scale.device)["seconds"] for _ in range(rounds + 1)]
    return {"grid": asdict(grid), "seconds": min(found[1:], key=lambda seconds: seconds["all"])}


def build_works(
    scale: Scale, kind: str, batch: int, ways: tuple[str, ...]
) -> dict[str, Callable[[Read], Amounts]]:
    """The work in each way: networks that share their weights, and in training the optimizer."""
    model = scale.build().to(scale.device)
    if kind == "sampling":
        model.eval().to(getattr(torch, scale.dtype))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True) if kind == "training" else None
    works: dict[str, Callable[[Read], Amounts]] = {}
    for way in ways:
        own = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        if way == "compiled":
            compile_blocks(own)
        works[way] = (
            partial(draw, own, scale, batch)
            if optimizer is None
            else partial(step, own, optimizer, scale, batch)
        )
    return works


def measure(work: Callable[[Read], Amounts], device: str) -> Result:
    """Seconds of each part and in all, and the peak memory of a GPU."""
    if device == "cpu":
        return {"seconds": work(clock(device))}
    torch.cuda.reset_peak_memory_stats()
    seconds = work(clock(device))
    return {"seconds": seconds, "peak_gb": torch.cuda.max_memory_allocated() / 2**30}


def compile_blocks(model: NOVA) -> None:
    """Each block by itself, so that all of a stack share one compilation."""
    for module in model.modules():
        if isinstance(module, TransformerBlock):
            module.compile(dynamic=True)
    model.head.net.compile(dynamic=True)  # type: ignore[union-attr]


# The work


def draw(
    model: NOVA,
    scale: Scale,
    batch: int,
    read: Read,
    grid: TokenGrid | None = None,
    *,
    graphs: bool = False,
    **options: int,
) -> Amounts:
    """A batch of clips, with guidance: what passed in each part, the rest, and all of it.

    With CUDA `graphs` the parts cannot be told apart, because only the first call of each runs their code.
    """
    device = next(model.parameters()).device.type
    wanted = {"guidance": GUIDANCE, "diffusion_steps": scale.diffusion_steps, **options}
    own = model.options_for("continuous")().replace(**wanted)
    request = Request(scale.condition(batch, device), grid or scale.grid, options=own)
    with parts(model, "sample", read) as found, nullcontext() if graphs else without_graphs():
        begun = read()
        model.generate(request)
        total = read() - begun
    return {**found, "rest": total - sum(found.values()), "all": total}


def step(
    model: NOVA, optimizer: torch.optim.Optimizer | None, scale: Scale, batch: int, read: Read
) -> Amounts:
    """A training step: what passed in each part of the forward pass, in the backward pass and in the optimizer."""
    device = next(model.parameters()).device.type
    grid = scale.grid
    tokens = torch.randn(batch, grid.t, grid.h, grid.w, SPEC.size, device=device)
    condition = scale.condition(batch, device)
    low = scale.dtype == "bfloat16" and device == "cuda"
    with (
        parts(model, "loss", read) as found,
        mock.patch("arvid.paradigms.nova.paradigm.draw_mask_ratio", return_value=MASKED),
    ):
        begun = read()
        with torch.autocast(device, torch.bfloat16) if low else torch.enable_grad():
            loss = model.train().loss(tokens, condition)["loss"]
        forward = read()
        loss.backward()
        backward = read()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        end = read()
    found["rest of the forward pass"] = forward - begun - sum(found.values())
    found |= {"backward": backward - forward, "optimizer": end - backward}
    return {**found, "all": end - begun}


def clock(device: str) -> Read:
    """Seconds: of the processor on CPUs, of the wall on GPUs, when they have done what they were given."""
    if device == "cpu":
        return time.process_time

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


@contextmanager
def parts(model: NOVA, use_of_head: str, read: Read) -> Iterator[Amounts]:
    """Adds up what passes in temporal layers, spatial layers and head while the block runs."""
    found = dict.fromkeys(PARTS, 0.0)
    watched = [
        ("temporal layers", model.temporal, "forward"),
        ("temporal layers", model.temporal, "step"),
        ("temporal layers", model.temporal, "indicator"),
        ("spatial layers", model.spatial, "forward"),
        ("diffusion head", model.head, use_of_head),
    ]
    with ExitStack() as stack:
        for name, module, method in watched:
            usual = getattr(module, method)
            stack.enter_context(mock.patch.object(module, method, adding(usual, name, found, read)))
        yield found


def adding(
    function: Callable[..., Any], name: str, found: Amounts, read: Read
) -> Callable[..., Any]:
    """The function, with what passes in it added to a part."""

    def added(*args: Any, **kwargs: Any) -> Any:
        begun = read()
        result = function(*args, **kwargs)
        found[name] += read() - begun
        return result

    return added


# The bound


def on_meta(scale: Scale) -> NOVA:
    """The model without memory."""
    with torch.device("meta"):
        return scale.build()


def sampling_flops(scale: Scale, batch: int) -> Amounts:
    """FLOPs of a batch of clips. Frames differ in the temporal layers alone, so that one frame is counted in full."""
    model = on_meta(scale).eval()
    with FlopCounterMode(display=False) as counter:
        one = TokenGrid(1, scale.grid.h, scale.grid.w)
        frame = draw(model, scale, batch, counter.get_total_flops, one)
        clip = draw(model, scale, batch, counter.get_total_flops, num_sets=1, diffusion_steps=1)
    for name in ("spatial layers", "diffusion head"):
        clip[name] = frame[name] * scale.grid.t
    clip.pop("all")
    return {**clip, "all": sum(clip.values())}


def training_flops(scale: Scale, batch: int) -> Amounts:
    """FLOPs of a training step; the optimizer's are not counted."""
    with FlopCounterMode(display=False) as counter:
        return step(on_meta(scale), None, scale, batch, counter.get_total_flops)


def throughput(scale: Scale) -> float:
    """FLOPs per second of a product of large matrices, at best."""
    shape = (scale.matrix, scale.matrix)
    x = torch.randn(shape, device=scale.device, dtype=getattr(torch, scale.dtype))
    read = clock(scale.device)

    def seconds() -> float:
        begun = read()
        for _ in range(5):
            x @ x
        return (read() - begun) / 5

    return 2 * scale.matrix**3 / min(seconds() for _ in range(8))


# The report


def page(report: Result) -> list[str]:
    """Lines below the title: what was measured, and a table for each case."""
    scale, rate = report["model"], report["flops_per_second"]
    grid = scale["grid"]
    lines = [
        f"{report['parameters'] / 1e6:.3g}M parameters, {scale['dtype']}, torch {report['torch']}. "
        f"{grid['t']} latent frames of {grid['h']}x{grid['w']}; sampling in {scale['num_sets']} sets with "
        f"{scale['diffusion_steps']} diffusion steps and guidance. "
        f"The bound is {rate / 1e9:,.0f} GFLOP/s, which a product of matrices attains."
    ]
    for case in report["cases"]:
        lines += ["", *case_lines(case, rate)]
    if report["scale"] == "appendix":
        lines += ["", *published_lines(report)]
    parts = (*PARTS, "rest", "all")
    clips = [
        [
            f"{clip['grid']['t']} x {clip['grid']['h']}x{clip['grid']['w']}",
            *(f"{clip['seconds'][part]:.3f}" for part in parts),
            f"{clip['seconds']['temporal layers'] / clip['seconds']['all']:.1%}",
        ]
        for clip in report["clips"]
    ]
    headings = ("latent frames", *(f"{part} (s)" for part in parts), "temporal share")
    return [*lines, "", "## One clip, by length and size", "", *table(headings, clips)]


def published_lines(report: Result) -> list[str]:
    """The appendix' table 1 beside ours: seconds of one clip of a batch."""
    rows: list[list[str]] = [["published, A100", *(f"{x:.2f}" for x in PUBLISHED.values())]]
    for case in report["cases"]:
        for way, measured in case["ways"].items():
            seconds = {k: v / case["batch"] for k, v in measured["seconds"].items()}
            temporal = seconds["temporal layers"]
            cells = (temporal, seconds["all"] - temporal, seconds["all"])
            rows.append([f"arvid, {way}", *(f"{x:.2f}" for x in cells)])
    headings = ("seconds of one clip", *PUBLISHED)
    return ["## Table 1 of the appendix: 29x768x480, batches of 24", "", *table(headings, rows)]


def case_lines(case: Result, rate: float) -> list[str]:
    """One table: FLOPs and bound of each part; its seconds, share of all and utilisation in each way."""
    what = "A batch of clips" if case["kind"] == "sampling" else "A training step"
    ways = [f"{way}: {cell}" for way in case["ways"] for cell in ("s", "share", "utilisation")]
    headings = ("part", "GFLOP", "bound (s)", *ways)
    rows = []
    for part, flops in case["flops"].items():
        cells = [part, f"{flops / 1e9:,.1f}", f"{flops / rate:.3f}"]
        for way in case["ways"].values():
            seconds = way["seconds"][part]
            share = seconds / way["seconds"]["all"]
            used = f"{flops / rate / seconds:.0%}" if flops > 1e-3 * case["flops"]["all"] else ""
            cells += [f"{seconds:.3f}", f"{share:.1%}", used]
        rows.append(cells)
    notes = [f"{way}: failed, {why}." for way, why in case["failed"].items()]
    notes += [
        f"{name}: at most {way['peak_gb']:.1f} GB."
        for name, way in case["ways"].items()
        if "peak_gb" in way
    ]
    lines = [f"## {what}: {case['batch']}", "", *table(headings, rows)]
    return [*lines, "", *notes] if notes else lines


if __name__ == "__main__":
    main()
