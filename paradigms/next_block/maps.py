"""Attention maps of a next-block model that predicts a real clip (figures 11 and 12 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arvid.contracts import Clip, TokenGrid, UserError
from arvid.data.collate import normalise
from arvid.nn.attention_maps import recording
from arvid.paradigms.next_block.layout import Layout
from arvid.paradigms.next_block.paradigm import NextBlock
from arvid.sampling.sample import Conditions
from arvid.training.generator_module import GeneratorModule


@dataclass(frozen=True)
class Maps:
    """Attention weights of a sequence of some latent frames, and the layout of the sequence."""

    weights: Float[Tensor, "layers n n"]
    """Mean over clips and heads; rows are queries. Context positions that are padding in all clips are left out."""
    num_context: int
    """Number of remaining context positions."""
    layout: Layout
    order: Tensor
    """Raster index of each token of the sequence."""
    grid: TokenGrid

    @property
    def positions(self) -> Int[Tensor, " n"]:
        """Position of each token in the sequence. Tokens of frames that are left out have positions after the end."""
        return self.layout.token_positions() - (self.layout.num_context - self.num_context)

    @property
    def edges(self) -> list[int]:
        """Ends of the sequence's parts: context, begin-of-video tokens, then each latent frame."""
        frame, length = self.grid.tokens_per_frame, self.weights.shape[-1]
        positions = self.positions.tolist()
        firsts = [positions[i] for i in range(0, len(positions), frame)]
        return [self.num_context, *(first for first in firsts if first < length), length]

    def row(self, raster: int) -> Float[Tensor, "layers t h w"]:
        """Attention of the token with raster index `raster` to each token of its frame and of earlier frames."""
        positions = self.positions
        token = int((self.order == raster).nonzero())
        frames = raster // self.grid.tokens_per_frame + 1
        num = frames * self.grid.tokens_per_frame
        row = self.weights.new_zeros(len(self.weights), num)
        row[:, self.order[:num]] = self.weights[:, positions[token], positions[:num]]
        return row.unflatten(1, (frames, self.grid.h, self.grid.w))

    def shares(self) -> dict[str, list[float]]:
        """Mean attention of the tokens of the last frame to each part of the sequence, by layer.

        The parts: context, begin-of-video tokens, earlier frames, and two parts of the own frame: tokens up to the
        query in raster order, and tokens after it, which next-token prediction never sees.
        """
        *_, start, end = edges = self.edges
        positions = self.positions
        token = (positions >= start) & (positions < end)
        raster = self.order[token]
        rows = self.weights[:, start:end]
        own = rows[:, positions[token] - start][:, :, positions[token]]  # (layers, q, k)
        after = (own * (raster[:, None] < raster[None, :])).sum(-1).mean(-1)
        context, first = edges[0], edges[1]
        parts = {
            "context": rows[..., :context].sum(-1).mean(-1),
            "begin of video": rows[..., context:first].sum(-1).mean(-1),
            "frames before": rows[..., first:start].sum(-1).mean(-1),
            "own frame, up to itself": own.sum(-1).mean(-1) - after,
            "own frame, after itself": after,
        }
        return {name: value.tolist() for name, value in parts.items()}


@torch.no_grad()
def attention_maps(model: GeneratorModule, clips: Sequence[Clip], num_frames: int = 3) -> Maps:
    """The maps of real clips while latent frame `num_frames` (from 1) is predicted from earlier latent frames.

    Raises UserError for a model of another paradigm, too short clips, or frames that are not whole blocks.
    """
    paradigm = model.paradigm
    if not isinstance(paradigm, NextBlock):
        raise UserError("Only next-block models have these maps.")
    if num_frames > paradigm.grid.t:
        raise UserError(
            f"The model's clips have {paradigm.grid.t} latent frames, but {num_frames} were requested."
        )
    layout = paradigm.clip_layout(num_frames)
    video = torch.stack([normalise(clip.video) for clip in clips]).to(model.device)
    tokens = model.tokenizer.encode(video)[:, :num_frames]
    shown_frames = model.tokenizer.spec.num_frames(paradigm.grid.with_frames(num_frames))
    condition = Conditions.of_clips(clips).encode(model, shown_frames)
    order = paradigm.order[: layout.num_tokens]
    padding = paradigm.padding(condition.text_mask)
    with recording(paradigm.transformer) as found:
        paradigm.hidden_states(
            paradigm.context(condition, len(clips), None),
            padding,
            tokens.flatten(1, 3)[:, order],
            layout,
            frame_conditions=paradigm.frame_conditions(condition, len(clips), num_frames),
        )
    grid = paradigm.grid.with_frames(num_frames - 1)
    end = int(layout.token_positions()[grid.num_tokens])
    kept = torch.ones(end, dtype=torch.bool)
    if padding is not None:
        kept[: padding.shape[1]] = ~padding.all(0).cpu()
    weights = torch.stack(found)[:, :end, :end][:, kept][:, :, kept]
    num_context = layout.num_context - int((~kept).sum())
    return Maps(weights, num_context, layout, order.cpu(), grid)
