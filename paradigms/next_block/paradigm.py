"""Next-block prediction (NBP, arXiv 2502.07737) with any block; 1 x 1 x 1 is next-token prediction.

The output at the j-th position of a block predicts the j-th token of the next block. Positions of one block see each
other and everything before. `arvid.paradigms.next_block.layout` describes the start of the sequence. The network is the
released one: pre-norm, learned positional embeddings over the whole sequence, exact GELU, untied output without bias.
Default differences from the release: the first block is predicted from a block of begin-of-video tokens (described in
the paper, broken in its code); context tokens replace a prompt in the model's own vocabulary; padding is masked; and
conditions are dropped in training, so there is a null condition for guidance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from arvid.contracts import (
    Condition,
    ContextSpec,
    Paradigm,
    Request,
    SamplingOptions,
    Size,
    TokenGrid,
    TokenHead,
    Tokens,
    TokenSpec,
    UserError,
)
from arvid.nn.attend import BlockCausal
from arvid.nn.attention import BlockStyle, Transformer, build_norm
from arvid.nn.by_frame import losses_by_frame
from arvid.nn.conditioner import ContextEmbedder, warn_once
from arvid.nn.draws import Dropout, draw
from arvid.nn.frame_conditions import FrameEmbedder
from arvid.nn.heads import HEADS, DiffusionOptions, build_head
from arvid.nn.heads.diffusion_process import with_head
from arvid.nn.positions import Rotation
from arvid.nn.tokens import TokenEmbedding, require_prefix
from arvid.nn.windows import Window
from arvid.paradigms.next_block.decoding import Decoder, NextBlockSampling, sample_block
from arvid.paradigms.next_block.initialise import initialise_gpt
from arvid.paradigms.next_block.layout import Block, Layout, Spacing, Start, block_order
from arvid.paradigms.next_block.long_clips import clip_windows, stream_windows
from arvid.paradigms.next_block.positions import (
    LearnedPositions,
    PositionOrder,
    RotaryPositions,
)
from arvid.ranges import SHARE, at_least

History = Literal["complete", "corrupted"]


class NextBlock(Paradigm):
    """Predicts a block of tokens per step, all of its tokens at once.

    Args:
        spec, grid, context, size: see `arvid.contracts.Paradigm`.
        block: (T, H, W) tokens per block; must tile the grid. The paper's blocks are runs of tokens in raster order.
        spacing: tokens of a block are "adjacent", or "strided": one of each of H x W regions of a frame, as in PAR
            (arXiv 2412.15119).
        start: start of the sequence, see `layout`. With "none" the first block must be given.
        style: "gpt" as released; "llama" has RMSNorm, SwiGLU and rotary positional embeddings over (t, h, w), which the
            paper expects to help.
        positions: learned positional embeddings by a token's index in the "sequence" or in the "grid". They differ for
            blocks that are not raster runs. (Rotary embeddings always use the grid.)
        num_positions: rows of the table of positional embeddings; by default as many as needed; 5120 as released.
        num_other_ids: additional ids in the softmax after the tokenizer's (see CategoricalHead).
        mask_pads: no position attends to the padding of prompts. (In the released code they do, by a bug.)
        reveal: training sometimes reveals a part of the next block, so sampling can fill a block in several rounds.
        history: training shows all tokens before a block ("complete"), or replaces a share of them by a learned vector
            ("corrupted"); the share is drawn uniformly for each clip. Sampling always shows all (compare MAGI, arXiv
            2501.12389).
        dropout: dropout on embeddings and residual branches (0.1 as released).
        condition_dropout: probability that a clip's condition is dropped in training; needed for classifier-free
            guidance.
        diffusion: options of the diffusion head (continuous tokens only).

    Raises UserError for values outside their ranges, for a block that does not tile the grid, and if nothing is left to
    predict.
    """

    heads = HEADS
    options_class = NextBlockSampling
    takes_frame_conditions = True
    blocks: Tensor
    order: Tensor
    predicted_frames: Tensor

    def __init__(
        self,
        spec: TokenSpec,
        grid: TokenGrid,
        context: ContextSpec,
        size: Size,
        *,
        block: tuple[int, int, int] = (1, 1, 16),
        spacing: Spacing = "adjacent",
        start: Start = "block",
        style: BlockStyle = "gpt",
        positions: PositionOrder = "sequence",
        num_positions: int | None = None,
        num_other_ids: int = 0,
        mask_pads: bool = True,
        reveal: bool = False,
        history: History = "complete",
        dropout: float = 0.1,
        condition_dropout: float = 0.1,
        diffusion: DiffusionOptions = DiffusionOptions(),
    ) -> None:
        super().__init__(spec, grid)
        at_least(1).require(block=block, num_positions=num_positions)
        at_least(0).require(num_other_ids=num_other_ids)
        SHARE.require(dropout=dropout, condition_dropout=condition_dropout)
        if style == "llama" and (positions != "sequence" or num_positions is not None):
            raise UserError(
                "Rotary positional embeddings have no table: leave out positions and num_positions."
            )
        if spec.type == "continuous" and num_other_ids:
            raise UserError("Continuous tokens have no ids: leave out num_other_ids.")
        self.block: Block = (block[0], block[1], block[2])
        self.mask_pads = mask_pads
        self.condition_dropout = condition_dropout
        self.required_frames = self.block[0] if start == "none" else 0
        order = block_order(grid, self.block, spacing)
        self.layout = Layout(context.num_tokens, len(order), self.block_len, start)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("blocks", self.layout.blocks(), persistent=False)
        frames = torch.cat([order // grid.tokens_per_frame, order.new_tensor([grid.t])])
        # (L,) latent frame of the token that each position predicts; t if it predicts none
        self.register_buffer("predicted_frames", frames[self.layout.predicted()], persistent=False)
        self.context = ContextEmbedder(context, size.dim)
        self.frame_conditions = FrameEmbedder(context, size.dim)
        num_special = {"block": 1, "none": 0, "hybrid": self.block_len}[start]
        special = torch.empty(num_special, size.dim)
        self.special = nn.Parameter(special, requires_grad=num_special > 0)
        self.embed = TokenEmbedding(spec, size.dim)
        # The attribute's name is part of the names in checkpoints (`places.positions`).
        self.places: LearnedPositions | RotaryPositions
        if style == "gpt":
            self.places = LearnedPositions(self.layout, order, positions, size.dim, num_positions)
        else:
            self.places = RotaryPositions(self.layout, order, grid, size.dim // size.num_heads)
        self.reveal = self._reveal(size.dim) if reveal else None
        mask_token = torch.randn(size.dim) * 0.02 if history == "corrupted" else None
        self.mask_token = None if mask_token is None else nn.Parameter(mask_token)
        self.dropout = Dropout(dropout)
        self.transformer = Transformer(
            size.dim, size.depth, size.num_heads, norm="pre", dropout=dropout, style=style
        )
        self.norm = build_norm(size.dim, style)
        self.head: TokenHead = build_head(spec, size, diffusion, num_other_ids=num_other_ids)
        self._mask: BlockCausal | None = None
        initialise_gpt(self)

    def _reveal(self, dim: int) -> nn.Module:
        if self.block_len == 1 or self.spec.type == "continuous":
            raise UserError("Only blocks of several discrete tokens can be revealed in part.")
        return nn.Linear(dim, dim)

    @property
    def block_len(self) -> int:
        """Number of tokens of a block."""
        return self.block[0] * self.block[1] * self.block[2]

    # The sequence

    def embed_sequence(
        self,
        context: Float[Tensor, "b s d"],
        tokens: Tensor,
        start: int,
        end: int,
        frame_conditions: Float[Tensor, "b t d"] | None = None,
        masked: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        """Input vectors of positions start..end-1.

        `tokens` are in block-major order. If they have fewer clips than `context`, they are repeated. Embedded
        conditions per frame are added at the positions that predict the frame. `masked` tokens are replaced by the mask
        vector.
        """
        # Cut start..end-1 out of the pieces. `used` counts the entries of each source in earlier pieces.
        parts, offset, used = [], 0, {"context": 0, "special": 0, "tokens": 0}
        for kind, length in self.layout.pieces:
            low, high = max(start - offset, 0), min(end - offset, length)
            if low < high:
                first = used[kind]
                piece = self._piece(kind, context, tokens, first + low, first + high)
                if masked is not None and self.mask_token is not None and kind == "tokens":
                    hidden = masked[:, first + low : first + high, None]
                    piece = torch.where(hidden, self.mask_token, piece)
                parts.append(piece)
            offset += length
            used[kind] += length
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        if isinstance(self.places, LearnedPositions):
            x = x + self.places(start, end)
        if frame_conditions is not None:
            frames = self.predicted_frames[start:end]
            is_predicted = (frames < self.grid.t)[:, None]
            frames = frames.clamp_max(frame_conditions.shape[1] - 1)
            x = x + frame_conditions[:, frames] * is_predicted
        out: Tensor = self.dropout(x)
        return out

    def _piece(self, kind: str, context: Tensor, tokens: Tensor, low: int, high: int) -> Tensor:
        if kind == "context":
            return context[:, low:high]
        if kind == "special":
            rows = self.special.expand(self.block_len, -1)[low:high]
            return rows.expand(len(context), -1, -1)
        x: Tensor = self.embed(tokens[:, low:high])
        copies = len(context) // len(x)
        return x if copies == 1 else x.repeat(copies, 1, 1)

    def rotation(self, start: int, end: int) -> Rotation | None:
        """Rotary embeddings of positions start..end-1, or None for a network with learned ones."""
        return self.places(start, end) if isinstance(self.places, RotaryPositions) else None

    def mask(self, length: int) -> BlockCausal:
        """Block-causal mask of the first `length` positions. The last one is kept, with its kernels' masks."""
        blocks = self.blocks[:length]
        kept = self._mask
        if kept is None or len(kept.blocks) != length or kept.blocks.device != blocks.device:
            # With blocks of one token, only the context (the first block) has several positions.
            first = self.layout.num_context if self.block_len == 1 else None
            self._mask = kept = BlockCausal(blocks, first=first)
        return kept

    def padding(
        self, mask: Tensor | None, drop: Tensor | None = None
    ) -> Bool[Tensor, "b p"] | None:
        """True where the context's first tokens are padding of the text. `mask` is True for words.

        A dropped condition (`drop`) has no padding: all its tokens are null tokens.
        """
        if mask is None or not self.mask_pads or self.context.spec.text_dim is None:
            return None
        return ~mask if drop is None else ~mask & ~drop[:, None]

    def clip_layout(self, num_frames: int) -> Layout:
        """Layout of a clip of `num_frames` latent frames. Raises UserError for partial blocks or too many frames."""
        return dataclasses.replace(self.layout, num_tokens=self._num_tokens(num_frames))

    def _num_tokens(self, num_frames: int) -> int:
        if num_frames % self.block[0]:
            raise UserError(
                f"{num_frames} latent frames are not a whole number of blocks "
                f"of {self.block[0]} frames."
            )
        if num_frames > self.grid.t:
            raise UserError(
                f"{num_frames} latent frames were requested, but this model has positions for "
                f"{self.grid.t}: it cannot exceed its training length without an overlap of windows (--overlap)."
            )
        return num_frames * self.grid.tokens_per_frame

    # Training

    def loss(self, tokens: Tokens, condition: Condition) -> dict[str, Tensor]:
        """Loss over the predicted tokens.

        `per_token` is the mean over all predicted tokens. `common` is the mean over those after the first latent frame.
        Blocks of up to one frame predict all of these with any `start`, so `common` is comparable between blocks. Clips
        of one latent frame have no `common`. `frame_i` is the mean over the predicted tokens of latent frame i.
        """
        layout = self.clip_layout(tokens.shape[1])
        order = self.order[: layout.num_tokens]
        target = tokens.flatten(1, 3)[:, order]  # (B, N[, C])
        drop = None
        if self.training:
            drop = draw(partial(torch.rand, device=tokens.device), [len(tokens)])
            drop = drop < self.condition_dropout
        context = self.context(condition, len(tokens), drop)
        frame_conditions = self.frame_conditions(condition, *tokens.shape[:2], drop)
        padding = self.padding(condition.text_mask, drop)
        predicted = target[:, layout.first_predicted :]
        revealed = self._revealed(predicted, layout)
        hidden = self.hidden_states(
            context, padding, target, layout, revealed, frame_conditions=frame_conditions
        )
        losses = self.head.loss(hidden, predicted)  # (B, M)
        return self._means(losses, layout, revealed)

    def hidden_states(
        self,
        context: Float[Tensor, "b s d"],
        padding: Bool[Tensor, "b p"] | None,
        tokens: Tensor,
        layout: Layout,
        revealed: Bool[Tensor, "b m"] | None = None,
        frame_conditions: Float[Tensor, "b t d"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Normed hidden states that predict all tokens (B, N[, C]) from `layout.first_predicted` on.

        `revealed` marks the tokens that their predicting positions may see. `frame_conditions` are the embedded
        conditions per frame.
        """
        length = layout.length(list(layout.steps())[-1])
        masked = self._masked(tokens)
        x = self.embed_sequence(context, tokens, 0, length, frame_conditions, masked)
        if revealed is not None:
            # Positions after the context predict the tokens in order, one each.
            hint = self.hint(tokens[:, layout.first_predicted :], revealed)
            x = torch.cat([x[:, : layout.num_context], x[:, layout.num_context :] + hint], dim=1)
        mask = self.mask(length).with_padding(padding)
        x = self.transformer(x, mask, rotation=self.rotation(0, length))
        hidden: Tensor = self.norm(x[:, layout.num_context :])
        return hidden

    def hint(self, tokens: Tensor, revealed: Bool[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
        """Embeddings of the revealed tokens, added to the inputs at the positions that predict them; 0 elsewhere."""
        assert self.reveal is not None
        embedded: Tensor = self.reveal(self.embed(tokens))
        return embedded * revealed[..., None]

    def _revealed(self, tokens: Tensor, layout: Layout) -> Bool[Tensor, "b m"] | None:
        """Reveal a random share of the tokens, in half of the clips. None outside training.

        Tokens that are predicted one by one (the first block with start "hybrid") are never revealed.
        """
        if self.reveal is None or not self.training:
            return None
        uniform = partial(torch.rand, device=tokens.device)
        draws = draw(uniform, [len(tokens), 2])
        share = draws[:, :1] * (draws[:, 1:] < 0.5)
        revealed = draw(uniform, tokens.shape) < share
        if layout.start == "hybrid":
            revealed[:, : layout.block_len] = False
        return revealed

    def _masked(self, tokens: Tensor) -> Bool[Tensor, "b n"] | None:
        """Mask (B, N) of the tokens that a corrupted history hides; None outside training."""
        if self.mask_token is None or not self.training:
            return None
        uniform = partial(torch.rand, device=tokens.device)
        share = draw(uniform, [len(tokens), 1])
        return draw(uniform, tokens.shape[:2]) < share

    def _means(self, losses: Tensor, layout: Layout, revealed: Tensor | None) -> dict[str, Tensor]:
        # Revealed tokens are in the input, so they do not count.
        counted = torch.ones_like(losses) if revealed is None else (~revealed).to(losses.dtype)
        loss = (losses * counted).sum() / counted.sum().clamp_min(1)
        means = {"loss": loss, "per_token": loss.detach()}
        frame = self.grid.tokens_per_frame
        if layout.num_tokens > frame:
            predicted = self.order[layout.first_predicted : layout.num_tokens]
            frames = (predicted // frame).expand_as(losses)
            means |= losses_by_frame(losses, frames, layout.num_tokens // frame, counted)
            counted = counted * (predicted >= frame)
            means["common"] = ((losses * counted).sum() / counted.sum().clamp_min(1)).detach()
        return means

    # Sampling

    def num_evaluations(
        self,
        grid: TokenGrid,
        *,
        prefix_frames: int = 0,
        options: SamplingOptions = SamplingOptions(),
    ) -> dict[str, int]:
        own = self.own_options(options, NextBlockSampling)
        parts = [Window(0, prefix_frames, grid.t)]
        if own.overlap and grid.t > self.grid.t:
            parts = clip_windows(self, grid.t, prefix_frames, own.overlap)
        steps = 0
        for part in parts:
            layout = self.clip_layout(part.num_frames)
            counts = map(layout.num_predicted, layout.steps(self._whole_blocks(part.known)))
            steps += sum(own.rounds if count > 1 else 1 for count in counts)
        return with_head({"transformer": steps}, own)

    @torch.no_grad()
    def stream(self, request: Request) -> Iterator[Tokens]:
        """As `Paradigm.stream`.

        A block with given and new frames is sampled completely, then its given tokens are restored. (Tokens of a block
        do not depend on each other.) Raises UserError if `start` is "none" and the prefix is shorter than a block.
        """
        condition, grid, batch = request.condition, request.grid, request.batch_size
        options = self.own_options(request.options, NextBlockSampling)
        if options.overlap and grid.t > self.grid.t:
            yield from stream_windows(self, request, options.overlap)
            return
        layout = self.clip_layout(grid.t)
        tokens, given = self._given(request.prefix, layout, batch)  # (B, N[, C]), block by block
        if options.guided and not self.condition_dropout and condition.negative_text is None:
            warn_once(
                "This model has not learned the null condition of guidance: it was trained with condition_dropout 0. "
                "Give a negative prompt, or guidance 1."
            )
        context = self.context.guided(condition, batch, options.guided)
        padding = self._padding_of_passes(condition, context)
        passes = len(context) // batch
        frame_conditions = self.frame_conditions.guided(condition, batch, grid.t, passes)
        decoder = Decoder(self, context, padding, layout, options, frame_conditions)
        finished = 0  # frames
        for known in layout.steps(given):
            if known >= (finished + self.block[0]) * grid.tokens_per_frame:
                piece, finished = self._frames(tokens, finished, known)
                yield piece
            sampled = sample_block(self, decoder, tokens, known, options, request)
            part = slice(known, known + sampled.shape[1])
            if request.prefix_frames % self.block[0]:
                fixed = self.order[part] < request.prefix_frames * grid.tokens_per_frame
                fixed = fixed.view(-1, *[1] * (sampled.ndim - 2))
                sampled = torch.where(fixed, tokens[:, part], sampled)
            tokens[:, part] = sampled
        decoder.close()
        yield self._frames(tokens, finished, layout.num_tokens)[0]

    def _given(self, prefix: Tokens | None, layout: Layout, batch: int) -> tuple[Tensor, int]:
        """A tensor for all tokens (B, N[, C]) in block-major order, filled with the prefix, and the prefix's length."""
        channels = () if self.spec.type == "discrete" else (self.spec.size,)
        dtype = torch.long if self.spec.type == "discrete" else torch.float32
        tokens = torch.zeros(
            batch, layout.num_tokens, *channels, dtype=dtype, device=self.order.device
        )
        if prefix is None and layout.first_predicted:
            raise UserError(
                "This model has no begin-of-video token: it continues given frames. Give first frames."
            )
        if prefix is None:
            return tokens, 0
        require_prefix(prefix, self.spec, self.grid, batch)
        given = prefix.shape[1] * self.grid.tokens_per_frame
        if given >= layout.num_tokens:
            raise UserError(
                f"{prefix.shape[1]} given latent frames leave nothing to generate in a clip of "
                f"{layout.num_tokens // self.grid.tokens_per_frame}."
            )
        known = self._whole_blocks(prefix.shape[1])
        if known < layout.first_predicted:
            raise UserError(
                f"This model needs {self.block[0]} given latent frames, but got {prefix.shape[1]}."
            )
        tokens[:, :given] = prefix.to(dtype).flatten(1, 3)  # in raster order
        return tokens[:, self.order[: layout.num_tokens]], known

    def _whole_blocks(self, num_frames: int) -> int:
        """Tokens of the whole blocks among the first latent frames."""
        return num_frames // self.block[0] * self.block[0] * self.grid.tokens_per_frame

    def _frames(self, tokens: Tensor, first: int, known: int) -> tuple[Tokens, int]:
        """The complete frames of the known tokens from frame `first` on, in raster order; and their end."""
        frame = self.grid.tokens_per_frame
        last = known // (frame * self.block[0]) * self.block[0]
        part = slice(first * frame, last * frame)
        # Inverse of the block-major order: token i of the part goes to its raster index.
        piece = torch.empty_like(tokens[:, part])
        piece[:, self.order[part] - part.start] = tokens[:, part]
        return piece.unflatten(1, (-1, self.grid.h, self.grid.w)), last

    def _padding_of_passes(
        self, condition: Condition, context: Tensor
    ) -> Bool[Tensor, "b p"] | None:
        """Padding of the context. With guidance, the second half of the context is the negative one."""
        given = self.padding(condition.text_mask)
        negative = self.padding(condition.negative_text_mask)
        if given is None and negative is None:
            return None
        none = torch.zeros_like(given if given is not None else negative, dtype=torch.bool)  # type: ignore[arg-type]
        passes = [none if given is None else given]
        if len(context) > len(none):
            passes.append(none if negative is None else negative)
        return torch.cat(passes)
