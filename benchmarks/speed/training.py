"""Overhead of a training step compared with a plain PyTorch loop.

All rows train the same number of parameters on the same random ids with AdamW, alternating in one process. The plain
row is a GPT in this file with fused attention and a fused optimiser. Each further row adds one layer of arvid's
training.

  plain          GPT, loss, backward pass, gradient clipping, fused AdamW
  paradigm       the same loop around arvid's paradigm
  lightning      the paradigm in a bare Lightning trainer
  callbacks      with the callbacks of `arvid fit`: seeds, checkpoints, progress bar, throughput, CSV log
  averages       with running averages of the weights

Seconds are CPU time of the median step, in the fastest round.

examples:
  arvid bench speed/training
  arvid bench speed/training --scale smoke

Writes table.md and results.json to --out. Some minutes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F

from arvid.contracts import ParadigmFactory, Size
from arvid.experiments.paper import script_parser, table, write_page
from arvid.hardware import cpu_summary
from arvid.nn.heads.categorical import CategoricalHead
from arvid.paradigms.next_block import NextBlock
from arvid.paradigms.next_token import NextToken
from arvid.training.averaging import EMAWeightAveraging
from arvid.training.callbacks import SeedEachStep, StepBar, Throughput
from arvid.training.finite import SkipNonfinite
from arvid.training.generator_module import GeneratorModule, Tokenizers
from arvid.training.health import Health
from arvid.training.leaving import LeaveOnSignal
from arvid.training.optimizer import OptimizerConfig
from arvid.training.saving import SaveLast

CLIP_SHAPE = (9, 32, 32)
"""Frames, height and width: 3 x 8 x 8 tokens of the embedded tokenizer."""
TOKENIZER = "sprites-magvit_fsq"
OPTIMIZER = OptimizerConfig(lr=1e-3, warmup_steps=10, schedule="constant")
CLIP_NORM = 1.0
BATCH = 8
WARM_UP = 5
"""Steps of a round that are not timed."""
ROWS = ("plain", "paradigm", "lightning", "callbacks", "averages")
PARADIGMS: dict[str, ParadigmFactory] = {
    "next_token": partial(NextToken, dropout=0.0),
    "next_block": partial(NextBlock, block=(1, 1, 8), dropout=0.0),
}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Models to train, and the number of steps."""

    sizes: tuple[Size, ...]
    num_steps: int
    """Timed in each round."""
    num_rounds: int


SCALES = {
    "smoke": Scale(
        sizes=(Size(name="w16", dim=16, depth=1, num_heads=2),), num_steps=2, num_rounds=1
    ),
    "demo": Scale(
        sizes=(
            Size(name="width 128, 6 layers", dim=128, depth=6, num_heads=4),
            Size(name="width 32, 2 layers", dim=32, depth=2, num_heads=2),
        ),
        num_steps=20,
        num_rounds=4,
    ),
}


class PlainGPT(nn.Module):
    """A causal transformer over ids (B, N): the baseline for the paradigms."""

    def __init__(self, size: Size, vocab_size: int, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, size.dim)
        self.positions = nn.Parameter(torch.randn(length, size.dim) * 0.02)
        self.blocks = nn.ModuleList(PlainBlock(size.dim, size.num_heads) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.dim)
        self.head = nn.Linear(size.dim, vocab_size, bias=False)

    def loss(self, ids: Tensor) -> Tensor:
        """Mean cross-entropy of the ids (B, N), each predicted from those before; the first from id 0."""
        x = self.tokens(F.pad(ids[:, :-1], (1, 0))) + self.positions
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten())


class PlainBlock(nn.Module):
    """Causal attention and an MLP, pre-norm."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3)
        q, k, v = heads.unbind(2)  # (B, heads, N, head dim)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class StepTimes(Callback):
    """Processor time of each step of a Lightning training, from one step's end to the next one's."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.process_time()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        now = time.process_time()
        self.seconds.append(now - self._last)
        self._last = now


def main() -> None:
    """Time all rows of all sizes; write the page."""
    options = script_parser(__doc__, "runs/speed-training", SCALES).parse_args()
    torch.set_num_threads(1)
    scale = SCALES[options.scale]
    results = [
        {"size": asdict(size), "paradigm": name, "seconds": compare(name, size, scale)}
        for size in scale.sizes
        for name in PARADIGMS
    ]
    notes = [cpu_summary(), f"One thread, batches of {BATCH} clips of 3 x 8 x 8 ids, float32."]
    write_page(
        options.out,
        "What a training step costs beside a plain loop",
        lines(results),
        notes,
        {"results": results},
    )


def lines(results: list[dict[str, Any]]) -> list[str]:
    """The table: milliseconds of each row, and its ratio to the plain one."""
    cells = []
    for result in results:
        seconds = result["seconds"]
        shown = [f"{1e3 * s:.1f} ({s / seconds['plain']:.2f})" for s in seconds.values()]
        cells.append([result["paradigm"], result["size"]["name"], *shown])
    headings = ["paradigm", "size", *(f"{row} (ms, ratio)" for row in ROWS)]
    return table(headings, cells)


def compare(name: str, size: Size, scale: Scale) -> dict[str, float]:
    """Seconds of a step by row; rows are timed in turns, so that other work on the machine disturbs all alike."""
    best = dict.fromkeys(ROWS, float("inf"))
    for _ in range(scale.num_rounds):
        for row in ROWS:
            best[row] = min(best[row], time_steps(row, name, size, scale.num_steps))
    return best


def time_steps(row: str, name: str, size: Size, num_steps: int) -> float:
    """Processor time of the median step of a short training."""
    torch.manual_seed(0)
    module = build(name, size)
    batches = [batch(module) for _ in range(WARM_UP + num_steps)]
    if row == "plain":
        grid = module.paradigm.grid
        plain = PlainGPT(size, module.tokenizer.spec.size, grid.num_tokens)
        seconds = loop(plain, lambda b: plain.loss(b["tokens"].flatten(1)), batches)
    elif row == "paradigm":
        step = partial(paradigm_loss, module)
        seconds = loop(module.paradigm, step, batches)
    else:
        seconds = fit(module, batches, row)
    return statistics.median(seconds[WARM_UP:])


def build(name: str, size: Size) -> GeneratorModule:
    """A paradigm without conditions on the embedded discrete tokens."""
    return GeneratorModule(
        paradigm=PARADIGMS[name],
        tokenizers=Tokenizers(discrete=TOKENIZER),
        token_type="discrete",
        size=size,
        clip_shape=CLIP_SHAPE,
        optimizer=OPTIMIZER,
    )


def batch(module: GeneratorModule) -> dict[str, Any]:
    """Random ids, as the datamodule gives them."""
    grid, spec = module.paradigm.grid, module.tokenizer.spec
    assert isinstance(module.paradigm.head, CategoricalHead)
    return {
        "tokens": torch.randint(spec.size, (BATCH, grid.t, grid.h, grid.w)),
        "caption": [""] * BATCH,
        "label": torch.full((BATCH,), -1),
        "motion": torch.full((BATCH,), torch.nan),
        "fps": torch.full((BATCH,), torch.nan),
    }


def paradigm_loss(module: GeneratorModule, data: dict[str, Any]) -> Tensor:
    """As `GeneratorModule` computes it."""
    return module.paradigm.loss(data["tokens"], module.conditioner.from_batch(data))["loss"]


def loop(
    network: nn.Module, loss: Callable[[dict[str, Any]], Tensor], batches: list[dict[str, Any]]
) -> list[float]:
    """A minimal training loop. Returns the seconds of each step."""
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=OPTIMIZER.lr, betas=OPTIMIZER.betas, weight_decay=0.02, fused=True
    )
    seconds = []
    for data in batches:
        began = time.process_time()
        loss(data).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - began)
    return seconds


def fit(module: GeneratorModule, batches: list[dict[str, Any]], row: str) -> list[float]:
    """The same by Lightning, with what the row adds; the seconds of each step."""
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=len(batches),
            max_epochs=-1,
            gradient_clip_val=CLIP_NORM,
            default_root_dir=folder,
            logger=CSVLogger(folder) if row != "lightning" else False,
            log_every_n_steps=10,
            callbacks=[*callbacks(row), times],
            enable_checkpointing=row != "lightning",
            enable_progress_bar=row != "lightning",
            enable_model_summary=False,
        )
        data: Any = batches  # a list is a dataset, which its type does not say
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
    return times.seconds


def callbacks(row: str) -> Iterator[Callback]:
    """Those of `arvid fit`."""
    if row in ("callbacks", "averages"):
        finite = SkipNonfinite()
        saver = SaveLast(in_doubt=finite.in_doubt)
        logged = (StepBar(), Throughput(), Health())
        yield from (SeedEachStep(), finite, saver, *logged, LeaveOnSignal(saver))
    if row == "averages":
        yield EMAWeightAveraging(decay=0.98, use_buffers=False)


if __name__ == "__main__":
    main()
