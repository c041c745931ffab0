"""Speed and memory of tokenizers, and memory of long clips that are processed in chunks.

Each tokenizer is timed in up to four variants, alternating in one process so that other work on the machine affects all
of them equally. The fastest round counts:

  plain            straightforward layers: channels before frames in memory
  as it is         arvid's layers: channels last, convolutions of kernel 1 as matrix products, activations in place
  compiled         the same with residual units through torch.compile, which fuses norms, activations and padding
  compiled, bf16   the same in bfloat16 (on GPUs)

Memory is the peak of a separate process, above its memory before the work. Then the causal tokenizers process a clip of
257 frames in chunks. The result must equal that of the whole clip, and the peak must be at most 1.3 times that of 33
frames. Weights are random unless the tokenizer is included in arvid; that does not change the time.

examples:
  python benchmarks/speed/video_tokenizers.py
  python benchmarks/speed/video_tokenizers.py --tokenizer magvit_fsq-base --tokenizer my.safetensors --out runs/mine

Writes table.md and results.json to --out. Takes some minutes on two cores. (A file called `tokenizers.py` would shadow
Hugging Face's package for scripts in this folder.)
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

import arvid
from arvid import registry
from arvid.contracts import UserError, VideoTokenizer
from arvid.experiments.paper import Cell, script_parser, table, write_page
from arvid.hardware import cpu_summary
from arvid.nn import causal_conv
from arvid.processes import best_device
from arvid.ranges import at_least
from arvid.training.export import embedded, load_tokenizer
from arvid.training.instantiate import build as build_part
from arvid.yaml_files import load_yaml

Shape = tuple[int, int, int, int]
"""Clips, frames, height, width."""
Result = dict[str, Any]

STABLE_DIFFUSION = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
CONFIGS = Path(arvid.__file__).parent / "configs" / "tokenizers"
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "open_sora_plan": ("open_sora_plan", {}),
    "Stable Diffusion's": (
        "pretrained",
        {"class_name": "AutoencoderKL", "config": STABLE_DIFFUSION},
    ),
    "Wan 2.1's": ("pretrained", {"class_name": "AutoencoderKLWan", "config": {}}),
}
"""Tokenizers without a configuration of their own: short name and arguments."""
ON_CPU: dict[str, Shape] = {
    "sprites-magvit_fsq": (8, 17, 32, 32),
    "sprites-vae3d": (8, 17, 32, 32),
    "magvit_fsq-small": (2, 17, 64, 64),
    "vae3d-small": (2, 17, 64, 64),
    "magvit_fsq-base": (1, 17, 64, 64),
    "magvit_fsq-published": (1, 17, 64, 64),
    "open_sora_plan": (1, 17, 64, 64),
    "Stable Diffusion's": (1, 17, 64, 64),
    "Wan 2.1's": (1, 17, 64, 64),
}
ON_GPU: dict[str, Shape] = {
    **{name: (16, 17, 128, 128) for name in ("magvit_fsq-small", "vae3d-small")},
    **{name: (4, 17, 128, 128) for name in ("magvit_fsq-base", "magvit_fsq-published", *OTHERS)},
}
COMPILED_ON_CPU = ("sprites-vae3d", "magvit_fsq-small")
"""Compiling takes a CPU about a minute each."""
STREAMED = ("magvit_fsq-small", "vae3d-small")
STREAM_SIZE = 128
CHUNK_LATENTS = 2
SHORT, LONG = 33, 257
TOLERANCE, MOST_MEMORY = 1e-5, 1.3
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Makes glibc return freed memory to the system immediately, so that the peak is memory in use."""


def main() -> None:
    """Run every case in a process of its own, print, write."""
    options = parse_arguments()
    if options.job:
        print(json.dumps(JOBS[options.job["job"]](options.job)))
        return
    started = time.monotonic()
    device = str(best_device())
    todo = list(jobs(options, device))
    results = [run(job) for job in tqdm(todo, "cases", disable=None)]
    checks = [stream_check(name, results) for name in dict.fromkeys(streamed(options))]
    report = {
        "device": device,
        "speed": [r for r in results if r["job"] == "speed"],
        "memory": [r for r in results if r["job"] == "memory"],
        "streams": [r for r in results if r["job"] in ("stream", "equal")],
        "stream_checks": checks,
        "torch": torch.__version__,
        "wall_seconds": round(time.monotonic() - started, 1),
    }
    notes = [cpu_summary()] if device == "cpu" else []
    write_page(options.out, "Speed and memory of the tokenizers", page(report), notes, report)
    if not all(check["holds"] for check in checks):
        sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_parser(__doc__, "runs/speed-tokenizers")
    parser.add_argument(
        "--tokenizer",
        action="append",
        default=[],
        help="embedded name, file, kind:SOURCE, or name in configs/tokenizers; may be repeated (default: all kinds)",
    )
    parser.add_argument(
        "--shape",
        type=at_least(1).integer,
        nargs=4,
        metavar=("B", "T", "H", "W"),
        help="of the clips timed",
    )
    parser.add_argument(
        "--rounds", type=at_least(1).integer, default=2, help="of timing; the best one counts"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave compiled ways out")
    parser.add_argument(
        "--stream-size", type=at_least(1).integer, default=STREAM_SIZE, help="pixels of long clips"
    )
    parser.add_argument("--stream-frames", type=at_least(1).integer, nargs=2, default=(SHORT, LONG))
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def jobs(options: argparse.Namespace, device: str) -> Iterator[Result]:
    """What is measured, each in a process of its own."""
    usual = ON_GPU if device == "cuda" else ON_CPU
    for name in options.tokenizer or usual:
        shape = options.shape or usual.get(name, (1, 17, 64, 64))
        compiled = not options.no_compile and (device == "cuda" or name in COMPILED_ON_CPU)
        case = {"tokenizer": name, "shape": shape, "device": device}
        yield {"job": "speed", **case, "compiled": compiled, "rounds": options.rounds}
        yield {"job": "memory", **case}
    short, long = options.stream_frames
    for name in streamed(options):
        case = {"tokenizer": name, "size": options.stream_size, "device": device}
        for frames, latents in ((short, CHUNK_LATENTS), (long, CHUNK_LATENTS), (long, None)):
            yield {"job": "stream", **case, "frames": frames, "latents": latents}
        yield {"job": "equal", **case, "frames": long, "latents": CHUNK_LATENTS}


def streamed(options: argparse.Namespace) -> tuple[str, ...]:
    """Tokenizers that long clips go through."""
    return tuple(options.tokenizer) or STREAMED


def run(job: Result) -> Result:
    """A job in a fresh process: what it was asked and what it found. Raises UserError with what the process said."""
    command = [sys.executable, str(Path(__file__).resolve()), "--job", json.dumps(job)]
    environment = os.environ if job["job"] == "speed" else {**os.environ, **GIVE_BACK}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise UserError(f"{job['job']} of {job['tokenizer']} failed:\n{done.stderr.strip()}")
    return {**job, **json.loads(done.stdout.splitlines()[-1])}


def build(job: Result) -> VideoTokenizer:
    """The tokenizer of a job, in eval mode on the job's device."""
    name = job["tokenizer"]
    torch.manual_seed(0)
    if name in embedded() or ":" in name or Path(name).is_file():
        tokenizer = load_tokenizer(name)
    elif name in OTHERS:
        kind, arguments = OTHERS[name]
        tokenizer = registry.get("tokenizers", kind)(**arguments)
    else:
        path = CONFIGS / f"{name}.yaml"
        if not path.is_file():
            raise UserError(f"{name} is no embedded tokenizer, no file, and not in {CONFIGS}.")
        config = load_yaml(path)["model"]["init_args"]["tokenizer"]
        tokenizer = build_part("tokenizers", config, what=f"The tokenizer of {name}")
    return tokenizer.requires_grad_(False).eval().to(job["device"])


def clip(shape: Shape, device: str) -> Tensor:
    """Coloured noise (B, 3, T, H, W) in [-1, 1]."""
    batch, frames, height, width = shape
    return torch.rand(batch, 3, frames, height, width, device=device) * 2 - 1


# Ways of computing the same


class PlainPointwise(causal_conv.PointwiseConv3d):
    """As a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class PlainNorm(causal_conv.FrameNorm):
    """On a copy with frames in the batch."""

    def forward(self, x: Tensor) -> Tensor:
        frames = rearrange(x, "b c t h w -> (b t) c h w").contiguous()
        y = torch.nn.GroupNorm.forward(self, frames)
        return rearrange(y, "(b t) c h w -> b c t h w", b=len(x)).contiguous()


class PlainSwish(causal_conv.Swish):
    """Nothing in place."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.slope * x)


class PlainDepthToSpace(causal_conv.DepthToSpace):
    """Channels first again."""

    def forward(self, x: Tensor, state: causal_conv.StreamState | None = None) -> Tensor:
        return super().forward(x, state).contiguous()


PLAIN = {cls.__mro__[1]: cls for cls in (PlainPointwise, PlainNorm, PlainSwish, PlainDepthToSpace)}


def plain(tokenizer: VideoTokenizer) -> VideoTokenizer:
    """A copy whose layers compute the plain way."""
    made = copy.deepcopy(tokenizer)
    for module in made.modules():
        if type(module) in PLAIN:
            module.__class__ = PLAIN[type(module)]
        if isinstance(module, torch.nn.Conv3d):
            module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return made


Way = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], torch.dtype]
"""Encode, decode, and the dtype of what they take."""


def ways(tokenizer: VideoTokenizer, job: Result) -> dict[str, Way]:
    """The ways that a tokenizer is timed in."""
    found: dict[str, Way] = {}
    if any(type(module) in PLAIN for module in tokenizer.modules()):
        slow = plain(tokenizer)
        found["plain"] = slow.encode, slow.decode, torch.float32
    found["as it is"] = tokenizer.encode, tokenizer.decode, torch.float32
    if job["compiled"]:
        found["compiled"] = (*compiled(tokenizer), torch.float32)
    if job["compiled"] and job["device"] == "cuda":
        found["compiled, bf16"] = (*compiled(tokenizer, torch.bfloat16), torch.bfloat16)
    return found


def compiled(
    tokenizer: VideoTokenizer, dtype: torch.dtype = torch.float32
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Encode and decode of a copy through torch.compile.

    Of arvid's own networks each residual unit is compiled by itself: nearly all of the work is in them, and torch 2.13
    stumbles over the padding that follows a depth-to-space. Others are compiled as a whole.
    """
    made = copy.deepcopy(tokenizer).to(dtype)
    units = [m for m in made.modules() if isinstance(m, causal_conv.ResidualUnit)]
    if not units:
        return torch.compile(made.encode), torch.compile(made.decode)
    torch._dynamo.config.recompile_limit = 64  # one for each width and size
    for unit in units:
        unit.compile(dynamic=False)
    return made.encode, made.decode


# The jobs


@torch.no_grad()
def speed(job: Result) -> Result:
    """Frames per second of encoding and decoding in each way, and how far each is from the first one."""
    tokenizer, video = build(job), clip(job["shape"], job["device"])
    tokens = tokenizer.encode(video)
    frames = job["shape"][0] * job["shape"][1]
    found = ways(tokenizer, job)
    rates: dict[str, tuple[float, float]] = {}
    differences: dict[str, float] = {}
    failed: dict[str, str] = {}
    first = None
    for i in range(job["rounds"] + 1):
        for name, (encode, decode, dtype) in found.items():
            if name in failed:
                continue
            given = tokens.to(dtype) if tokens.is_floating_point() else tokens
            try:
                encoding, _ = timed(encode, video.to(dtype), job)
                decoding, decoded = timed(decode, given, job)
            # Out of memory, or a failure of the compiler: the table has a row for it.
            except Exception as error:
                failed[name] = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
                rates.pop(name, None)
                continue
            first = decoded if first is None else first
            best = rates.get(name, (0.0, 0.0)) if i > 1 else (0.0, 0.0)  # round 0 warms up
            rates[name] = max(best[0], frames / encoding), max(best[1], frames / decoding)
            differences[name] = float((decoded - first).abs().max())
    return {
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "failed": failed,
        "ways": {
            name: {
                "encode_frames_per_second": encoding,
                "decode_frames_per_second": decoding,
                "largest_difference": differences[name],
            }
            for name, (encoding, decoding) in rates.items()
        },
    }


def timed(function: Callable[[Tensor], Tensor], given: Tensor, job: Result) -> tuple[float, Tensor]:
    """Seconds that a call takes, and what it gives."""
    synchronise(job)
    started = time.perf_counter()
    result = function(given)
    synchronise(job)
    return time.perf_counter() - started, result


def synchronise(job: Result) -> None:
    """Wait until the device has done what it was given."""
    if job["device"] == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def memory(job: Result) -> Result:
    """Peak memory of encoding and of decoding a clip."""
    tokenizer, video = build(job), clip(job["shape"], job["device"])
    before = reset_peak(job)
    tokens = tokenizer.encode(video)
    encoding = peak(job) - before
    before = reset_peak(job)
    tokenizer.decode(tokens)
    return {"encode_mb": encoding, "decode_mb": peak(job) - before}


@torch.no_grad()
def stream(job: Result) -> Result:
    """Peak memory of a clip that is made, encoded, decoded and forgotten chunk by chunk, or all at once."""
    tokenizer = build(job)
    lengths = chunk_lengths(tokenizer, job)
    before = reset_peak(job)
    total = 0
    for video in tokenizer.decode_stream(tokenizer.encode_stream(frames_of(job, lengths))):
        total += video.shape[2]
    assert total == job["frames"]
    return {"peak_mb": peak(job) - before}


@torch.no_grad()
def equal(job: Result) -> Result:
    """Difference between processing in chunks and at once: share of different tokens, largest pixel difference.

    Rounding may change a token that lies between two codes, so both decode the tokens of the whole clip.
    """
    tokenizer = build(job)
    lengths = chunk_lengths(tokenizer, job)
    whole = torch.cat(list(frames_of(job, lengths)), dim=2)
    expected = tokenizer.encode(whole)
    tokens = torch.cat(list(tokenizer.encode_stream(whole.split(lengths, dim=2))), dim=1)
    decoded = torch.cat(list(tokenizer.decode_stream(expected.split(job["latents"], dim=1))), dim=2)
    difference = (tokens - expected).abs()
    discrete = tokenizer.spec.type == "discrete"
    return {
        "tokens": float((difference > 0).float().mean() if discrete else difference.max()),
        "pixels": float((decoded - tokenizer.decode(expected)).abs().max()),
    }


JOBS: dict[str, Callable[[Result], Result]] = {
    "speed": speed,
    "memory": memory,
    "stream": stream,
    "equal": equal,
}


def chunk_lengths(tokenizer: VideoTokenizer, job: Result) -> list[int]:
    """Frames of each chunk; a single chunk without `latents`."""
    if job["latents"] is None:
        return [job["frames"]]
    return tokenizer.spec.chunk_frames(job["frames"], job["latents"])


def frames_of(job: Result, lengths: list[int]) -> Iterator[Tensor]:
    """Chunks (1, 3, t, size, size), made when they are asked for."""
    generator = torch.Generator().manual_seed(0)
    for length in lengths:
        shape = 1, 3, length, job["size"], job["size"]
        yield (torch.rand(shape, generator=generator) * 2 - 1).to(job["device"])


# Memory


def reset_peak(job: Result) -> float:
    """Reset the peak. Returns the current memory in MB."""
    if job["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    with suppress(OSError):  # elsewhere than on Linux the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS") or peak(job)


def peak(job: Result) -> float:
    """Peak memory since the last reset, in MB."""
    if job["device"] == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if (found := status("VmHWM")) is not None:
        return found
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def status(field: str) -> float | None:
    """A field of this process's status in MB; None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(field)), None)


# The report


def stream_check(name: str, results: list[Result]) -> Result:
    """Whether chunks of a long clip give the result of the whole clip, with the memory of a short clip."""
    of_name = [r for r in results if r["tokenizer"] == name]
    runs = [r for r in of_name if r["job"] == "stream"]
    (same,) = (r for r in of_name if r["job"] == "equal")
    short, long, whole = runs
    ratio = long["peak_mb"] / short["peak_mb"]
    return {
        "tokenizer": name,
        "frames": [short["frames"], long["frames"]],
        "peak_mb": [short["peak_mb"], long["peak_mb"], whole["peak_mb"]],
        "ratio": ratio,
        "tokens": same["tokens"],
        "pixels": same["pixels"],
        "holds": ratio <= MOST_MEMORY and max(same["pixels"], same["tokens"]) <= TOLERANCE,
    }


def page(report: Result) -> list[str]:
    """Lines below the title."""
    speeds = [row for case in report["speed"] for row in speed_rows(case)]
    memories = [
        (r["tokenizer"], shape_of(r), f"{r['encode_mb']:.0f}", f"{r['decode_mb']:.0f}")
        for r in report["memory"]
    ]
    speed_headings = (
        "tokenizer",
        "clips",
        "parameters",
        "way",
        "encode frames / s",
        "decode frames / s",
        "largest difference",
    )
    stream_headings = (
        "tokenizer",
        "frames",
        "short (MB)",
        "long (MB)",
        "ratio",
        "long, at once (MB)",
        "tokens differ",
        "pixels differ",
        "holds",
    )
    return [
        f"On {report['device']}, torch {report['torch']}.",
        "",
        "## Speed",
        "",
        "Times the speed of the first way, in parentheses.",
        "",
        *table(speed_headings, speeds),
        "",
        "## Memory, above what the process had before",
        "",
        *table(("tokenizer", "clips", "encode (MB)", "decode (MB)"), memories),
        "",
        "## Long clips in chunks",
        "",
        *table(stream_headings, [stream_row(check) for check in report["stream_checks"]]),
    ]


def stream_row(check: Result) -> list[Cell]:
    """The cells of a check."""
    short, long, whole = (f"{mb:.0f}" for mb in check["peak_mb"])
    return [
        check["tokenizer"],
        f"{check['frames'][0]}, {check['frames'][1]}",
        short,
        long,
        f"{check['ratio']:.2f}",
        whole,
        f"{check['tokens']:.1g}",
        f"{check['pixels']:.1g}",
        "yes" if check["holds"] else "NO",
    ]


def speed_rows(case: Result) -> list[list[Cell]]:
    """One row for each way of a tokenizer."""
    known = (case["tokenizer"], shape_of(case), f"{case['parameters'] / 1e6:.3g}M")
    rows: list[list[Cell]] = []
    first: Result = next(iter(case["ways"].values()), {})
    for way, measured in case["ways"].items():
        speeds = [
            f"{measured[key]:.4g} ({measured[key] / first[key]:.2f})"
            for key in ("encode_frames_per_second", "decode_frames_per_second")
        ]
        rows.append([*known, way, *speeds, f"{measured['largest_difference']:.1g}"])
    return rows + [[*known, way, "failed", why, ""] for way, why in case["failed"].items()]


def shape_of(case: Result) -> str:
    """'8 x 17x32x32'."""
    batch, *rest = case["shape"]
    return f"{batch} x {'x'.join(map(str, rest))}"


if __name__ == "__main__":
    main()
