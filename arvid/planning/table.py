"""The plan as text: short tables with units, and one recommendation."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from arvid.planning.devices import GIB
from arvid.planning.memory import Fit
from arvid.planning.plan import Plan

DAY = 86_400
HOUR = 3_600


def print_plan(plan: Plan, console: Console) -> None:
    """Print all parts of the plan."""
    for note in plan.notes:
        console.print(f"Assumed: {note}.")
    for title, table in _tables(plan):
        console.print(f"\n{title}")
        console.print(table)
    console.print(f"\n{recommendation(plan)}")


def _tables(plan: Plan) -> Iterator[tuple[str, Table]]:
    yield "Parameters", _parameters(plan)
    yield f"A micro-batch of {plan.setting.batch_size}, {plan.setting.precision}", _step(plan)
    yield _head_of_ways(plan), _ways(plan)
    yield "Training", _training(plan)
    if plan.generation is not None:
        yield "Sampling of one clip, float32", _sampling(plan)
    if plan.encoding is not None:
        yield "Encoding", _encoding(plan)


def _plain(*headings: str) -> Table:
    table = Table(*headings[:1], box=None, pad_edge=False, show_header=any(headings))
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    return table


def _parameters(plan: Plan) -> Table:
    table = _plain("", "")
    for name, count in plan.training.parts.items():
        table.add_row(name, f"{count:,}")
    table.add_row("all", f"{sum(plan.training.parts.values()):,}")
    table.add_row("trained", f"{plan.training.trained:,}")
    return table


def _step(plan: Plan) -> Table:
    table = _plain("checkpointing", "TFLOP", "saved for backward", "peak of the step")
    for name, cost in plan.training.steps.items():
        table.add_row(name, f"{cost.flops / 1e12:.4g}", gib(cost.saved), gib(cost.peak))
    return table


def _head_of_ways(plan: Plan) -> str:
    state, device = plan.training.state, plan.device
    parts = {
        "weights": state.weights,
        "frozen weights": state.frozen,
        "gradients": state.gradients,
        "optimiser": state.optimizer,
        "averages": state.averages,
    }
    listed = ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)
    return (
        f"Memory of a GPU: {device.name}, {device.memory:.0f} GiB, of which {gib(device.bytes)} for tensors "
        f"({plan.num_gpus} GPUs)\nState: {listed}"
    )


def _ways(plan: Plan) -> Table:
    table = _plain(
        "sharding", "checkpointing", "state", "step", "total", "fits", "largest micro-batch"
    )
    for way in plan.ways:
        table.add_row(
            way.sharding,
            way.checkpoint,
            gib(way.state),
            gib(way.activations),
            gib(way.total),
            "yes" if way.fits else "no",
            str(way.micro_batch or "none"),
        )
    return table


def _training(plan: Plan) -> Table:
    steps, best = plan.setting.max_steps, plan.best
    table = _plain("", "")
    table.add_row("clips of a step", f"{plan.clips_per_step:,}")
    table.add_row("tokens of a clip", f"{plan.tokens_per_clip:,}")
    table.add_row("PFLOP of a step", f"{plan.step_flops / 1e15:.4g}")
    if steps < 1:
        return table
    table.add_row("steps", f"{steps:,}")
    table.add_row("tokens", f"{plan.tokens_per_clip * plan.clips_per_step * steps:.4g}")
    table.add_row("FLOP", f"{plan.step_flops * steps:.4g}")
    seconds = plan.seconds((best or plan.ways[0]).flops)
    table.add_row(f"days on {plan.num_gpus} {plan.device.name}", f"{seconds / DAY:.4g}")
    table.add_row("GPU-hours", f"{seconds * plan.num_gpus / HOUR:.4g}")
    return table


def _sampling(plan: Plan) -> Table:
    cost = plan.generation
    assert cost is not None
    rate = plan.device.rate("32-true") * plan.utilisation
    table = _plain("", "")
    for name, count in cost.evaluations.items():
        table.add_row(f"evaluations: {name}", f"{count:,}")
    table.add_row("TFLOP, tokens", f"{cost.flops / 1e12:.4g}")
    table.add_row("TFLOP, decoding", f"{cost.decoding_flops / 1e12:.4g}")
    table.add_row("cache", gib(cost.cache))
    table.add_row(
        "seconds at the stated utilisation", f"{(cost.flops + cost.decoding_flops) / rate:.3g}"
    )
    return table


def _encoding(plan: Plan) -> Table:
    cost, clips = plan.encoding, plan.setting.num_clips
    assert cost is not None
    rate = plan.device.rate("32-true") * plan.utilisation
    counted = clips or 1_000_000
    table = _plain("", "")
    table.add_row("TFLOP of a clip", f"{cost.flops / 1e12:.4g}")
    table.add_row("tokens of a clip", f"{cost.bytes_per_clip / 1e3:,.1f} kB")
    table.add_row(f"shards of {counted:,} clips", gib(cost.bytes_per_clip * counted))
    hours = cost.flops * counted / rate / HOUR
    table.add_row(f"GPU-hours of {counted:,} clips", f"{hours:.3g}")
    return table


def recommendation(plan: Plan) -> str:
    """What to do, in one or two sentences."""
    best, device = plan.best, plan.device
    rates = (
        f"Times are for {plan.utilisation:.0%} of {device.rate(plan.setting.precision) / 1e12:.4g} TFLOP/s "
        f"({device.source})."
    )
    if best is None:
        smallest = min(plan.ways, key=lambda way: way.total)
        return (
            f"Nothing fits: the least memory needed is {gib(smallest.total)}. Take more GPUs (--gpus), a device with "
            f"more memory, or a smaller model. {rates}"
        )
    if best.fits and best.micro_batch == plan.setting.batch_size:
        batch = f"micro-batch {best.micro_batch}, as set"
    else:
        batch = f"--data.batch_size {best.micro_batch}"
    return f"Recommended: {_words(best)}, {batch}. {rates}"


def _words(way: Fit) -> str:
    return f"{way.sharding}, checkpointing {way.checkpoint}"


def gib(num_bytes: float) -> str:
    """Bytes in GiB; below 0.1 GiB in MiB."""
    if num_bytes < GIB / 10:
        return f"{num_bytes / 2**20:.2f} MiB"
    return f"{num_bytes / GIB:,.2f} GiB"
