"""Next-block prediction (NBP, arXiv 2502.07737) with any block; 1 x 1 x 1 is next-token prediction.

Sequence: context ‖ begin-of-video block ‖ blocks 0..K-2. The output at the j-th place of a block predicts
the j-th token of the next block; places of one block see each other and everything before. The transformer
is NBP's: pre-norm, learned absolute positions, exact GELU, untied output without bias. The begin-of-video
block is the paper's "block of special tokens", which its released code cannot train; context tokens replace
its language-model prompt, and conditions are dropped in training (the release has no usable guidance).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from arvid.contracts import (
    Condition,
    ContextSpec,
    Paradigm,
    SamplingOptions,
    Size,
    TokenGrid,
    Tokens,
    TokenSpec,
    UserError,
)
from arvid.nn.attention import KVCache, Transformer, block_causal_mask
from arvid.nn.conditioner import ContextEmbedder
from arvid.nn.heads import DiffusionOptions, build_head
from arvid.nn.initialise import initialise_gpt
from arvid.nn.tokens import TokenEmbedding
from arvid.paradigms.next_block.order import block_order


class NextBlock(Paradigm):
    """Predicts a block of tokens per step, all of its tokens at once.

    Args:
        spec, grid, context, size: see `arvid.contracts.Paradigm`.
        block: (T, H, W) tokens per block; must tile the grid.
        dropout: on embeddings and residual branches (0.1 in the released code).
        condition_dropout: probability that a clip's condition is dropped in training, which is what
            classifier-free guidance needs.
        diffusion: the diffusion head's process (continuous tokens only).
    """

    block_ids: Tensor
    order: Tensor

    def __init__(
        self,
        spec: TokenSpec,
        grid: TokenGrid,
        context: ContextSpec,
        size: Size,
        *,
        block: tuple[int, int, int] = (1, 1, 16),
        dropout: float = 0.1,
        condition_dropout: float = 0.1,
        diffusion: DiffusionOptions = DiffusionOptions(),
    ) -> None:
        super().__init__()
        self.spec = spec
        self.grid = grid
        self.block = (block[0], block[1], block[2])
        self.condition_dropout = condition_dropout
        self.register_buffer("order", block_order(grid, self.block), persistent=False)
        self.context = ContextEmbedder(context, size.dim)
        self.embed = TokenEmbedding(spec, size.dim)
        self.bov = nn.Parameter(torch.empty(size.dim))
        self.positions = nn.Parameter(torch.empty(context.num_tokens + grid.num_tokens, size.dim))
        self.dropout = nn.Dropout(dropout)
        self.transformer = Transformer(
            size.dim, size.depth, size.num_heads, norm="pre", dropout=dropout
        )
        self.norm = nn.LayerNorm(size.dim)
        self.head = build_head(spec, size, diffusion)
        self.register_buffer("block_ids", self._block_ids(), persistent=False)
        initialise_gpt(self)

    @property
    def block_len(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]

    def _block_ids(self) -> Tensor:
        """Context is block 0, the begin-of-video block 1, block k of the video k + 2."""
        context = torch.zeros(self.context.spec.num_tokens, dtype=torch.long)
        video = 1 + torch.arange(self.grid.num_tokens) // self.block_len
        return torch.cat([context, video])

    # Training

    def loss(self, tokens: Tokens, condition: Condition) -> dict[str, Tensor]:
        target = tokens.flatten(1, 3)[:, self._order(tokens.shape[1])]  # (B, N[, C])
        drop = torch.rand(len(tokens), device=tokens.device) < self.condition_dropout
        context = self.context(condition, len(tokens), drop if self.training else None)
        hidden = self._teacher_forced(context, target[:, : -self.block_len])
        loss = self.head.loss(hidden, target).mean()
        return {"loss": loss, "per_token": loss.detach()}

    def _order(self, num_frames: int) -> Tensor:
        """Block-major order of the first latent frames: blocks of whole frames come first in it."""
        if num_frames % self.block[0]:
            raise UserError(
                f"{num_frames} latent frames are not a whole number of blocks "
                f"of {self.block[0]} frames."
            )
        if num_frames > self.grid.t:
            raise UserError(
                f"{num_frames} latent frames were asked of a model with learned positions for "
                f"{self.grid.t}: it cannot go beyond its training length."
            )
        return self.order[: num_frames * self.grid.tokens_per_frame]

    def _teacher_forced(self, context: Tensor, inputs: Tensor) -> Tensor:
        """Hidden states (B, N, D) at the begin-of-video block and the input tokens (B, N - P[, C])."""
        x = self._inputs(context, inputs)
        mask = block_causal_mask(self.block_ids[: x.shape[1]])
        hidden: Tensor = self.norm(self.transformer(x, mask)[:, context.shape[1] :])
        return hidden

    def _inputs(self, context: Tensor, inputs: Tensor) -> Tensor:
        """The whole sequence with positions: context ‖ begin-of-video block ‖ tokens."""
        bov = self.bov.expand(len(context), self.block_len, -1)
        x = torch.cat([context, bov, self.embed(inputs)], dim=1)
        out: Tensor = self.dropout(x + self.positions[: x.shape[1]])
        return out

    # Sampling

    def num_evaluations(
        self,
        grid: TokenGrid,
        *,
        prefix_frames: int = 0,
        options: SamplingOptions = SamplingOptions(),
    ) -> dict[str, int]:
        steps = (grid.t - prefix_frames) * grid.tokens_per_frame // self.block_len
        if self.spec.type == "discrete":
            return {"transformer": steps}
        return {"transformer": steps, "diffusion head": steps * options.diffusion_steps}

    @torch.no_grad()
    def generate(
        self,
        condition: Condition,
        grid: TokenGrid,
        *,
        batch_size: int = 1,
        prefix: Tokens | None = None,
        options: SamplingOptions = SamplingOptions(),
        generator: torch.Generator | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> Tokens:
        batch = condition.batch_size or batch_size
        order = self._order(grid.t)
        done = self._prefix_tokens(prefix, batch)  # (B, n[, C]), grows by a block a step
        context = self.context.guided(condition, batch, options.guidance)
        decoder = _Decoder(self, context, len(order), options)
        while done.shape[1] < len(order):
            hidden = decoder.next_hidden(done)
            null = hidden[batch:] if len(hidden) > batch else None
            block = self.head.sample(
                hidden[:batch], options=options, null_hidden=null, generator=generator
            )
            done = torch.cat([done, block], dim=1)
            if on_step is not None:
                on_step()
        tokens = torch.empty_like(done)
        tokens[:, order] = done
        return tokens.unflatten(1, (grid.t, grid.h, grid.w))

    def _prefix_tokens(self, prefix: Tokens | None, batch: int) -> Tensor:
        if prefix is None:
            shape = (batch, 0) if self.spec.type == "discrete" else (batch, 0, self.spec.size)
            dtype = torch.long if self.spec.type == "discrete" else torch.float32
            return torch.empty(shape, dtype=dtype, device=self.bov.device)
        return prefix.flatten(1, 3)[:, self._order(prefix.shape[1])]


class _Decoder:
    """Hidden states of the next block, step by step: from a cache, or anew from everything."""

    def __init__(
        self, model: NextBlock, context: Tensor, num_tokens: int, options: SamplingOptions
    ) -> None:
        self.model = model
        self.context = context
        self.caches: list[KVCache] | None = None
        if options.use_cache:
            self.caches = model.transformer.new_caches(context.shape[1] + num_tokens)

    def next_hidden(self, done: Tensor) -> Tensor:
        """Normed hidden states (B, P, D) at the last block fed; with guidance B counts both halves."""
        copies = len(self.context) // len(done)
        done = done.repeat(copies, *(1,) * (done.ndim - 1))
        if self.caches is None or self.caches[0].length == 0:
            return self._first(done)
        model, start = self.model, self.caches[0].length
        x = model.embed(done[:, -model.block_len :])
        x = x + model.positions[start : start + model.block_len]
        hidden: Tensor = model.norm(model.transformer(x, caches=self.caches))
        return hidden

    def _first(self, done: Tensor) -> Tensor:
        """The whole sequence at once: the first step of a cached decode, each step of another."""
        x = self.model._inputs(self.context, done)
        mask = block_causal_mask(self.model.block_ids[: x.shape[1]])
        x = self.model.transformer(x, mask, self.caches)[:, -self.model.block_len :]
        hidden: Tensor = self.model.norm(x)
        return hidden
