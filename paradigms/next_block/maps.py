"""What a next-block model attends to while it predicts a real clip: the paper's figures 11 and 12."""

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
    """Attention weights of a sequence of a few latent frames, and what stands where in it."""

    weights: Float[Tensor, "layers n n"]
    """Mean over clips and heads; rows are queries. Places of the context that are padding in all clips are left out."""
    num_context: int
    """Those of the context that are not."""
    layout: Layout
    order: Tensor
    """Raster index of each token of the sequence."""
    grid: TokenGrid

    @property
    def places(self) -> Int[Tensor, " n"]:
        """Where each token stands; those of frames that are left out stand behind the end."""
        return self.layout.places() - (self.layout.num_context - self.num_context)

    @property
    def edges(self) -> list[int]:
        """Where in the sequence the context ends, the begin-of-video tokens, and each latent frame after the other."""
        frame, length = self.grid.tokens_per_frame, self.weights.shape[-1]
        places = self.places.tolist()
        firsts = [places[i] for i in range(0, len(places), frame)]
        return [self.num_context, *(place for place in firsts if place < length), length]

    def row(self, raster: int) -> Float[Tensor, "layers t h w"]:
        """What the query at a token of the grid takes from each token of its frame and of those before."""
        places = self.places
        token = int((self.order == raster).nonzero())
        frames = raster // self.grid.tokens_per_frame + 1
        num = frames * self.grid.tokens_per_frame
        taken = self.weights.new_zeros(len(self.weights), num)
        taken[:, self.order[:num]] = self.weights[:, places[token], places[:num]]
        return taken.unflatten(1, (frames, self.grid.h, self.grid.w))

    def shares(self) -> dict[str, list[float]]:
        """What a query at a token of the last frame in the sequence takes on average, by layer.

        From the context, begin-of-video tokens, earlier frames, and of its own frame from itself and tokens before it
        in raster order, and from those after, which next-token prediction never sees.
        """
        *_, start, end = edges = self.edges
        places = self.places
        token = (places >= start) & (places < end)
        raster = self.order[token]
        rows = self.weights[:, start:end]
        own = rows[:, places[token] - start][:, :, places[token]]  # (layers, q, k)
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
    """The maps of real clips while latent frame `num_frames` (counted from 1) is predicted from those before it.

    Raises UserError for a model that is no next-block one, clips of fewer latent frames, or frames that are no whole
    blocks.
    """
    paradigm = model.paradigm
    if not isinstance(paradigm, NextBlock):
        raise UserError("These maps are of next-block models.")
    if num_frames > paradigm.grid.t:
        raise UserError(
            f"The model's clips have {paradigm.grid.t} latent frames: {num_frames} are wanted."
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
    end = int(layout.places()[grid.num_tokens])
    kept = torch.ones(end, dtype=torch.bool)
    if padding is not None:
        kept[: padding.shape[1]] = ~padding.all(0).cpu()
    weights = torch.stack(found)[:, :end, :end][:, kept][:, :, kept]
    num_context = layout.num_context - int((~kept).sum())
    return Maps(weights, num_context, layout, order.cpu(), grid)
