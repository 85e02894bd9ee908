"""Streams of an image: a gate that splits its tokens, and what a stream reads from them with the queries of a book.

Guarantee: the two outputs of the gate add up to its input. A stream's parameters map one by one to those of MedKLIP and
MeDSLIP.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from medvlp.models.positions import grid_positions
from medvlp.models.query_decoder import Decoded, QueryDecoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float


class StreamGate(nn.Module):
    """Splits tokens x into m·x for findings and (1 - m)·x for anatomy, m = Linear(x) (MeDSLIP, arXiv 2403.10635).

    Args:
        width: Of the tokens.
        activation: Of m: none, as in MeDSLIP's code, or a sigmoid, which holds m between 0 and 1.
    """

    def __init__(self, width: int, activation: Literal["none", "sigmoid"] = "none") -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.activation = activation

    def forward(self, tokens: Float[torch.Tensor, "b p d"]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens of findings and of anatomy, each [b p d]."""
        mask = self.linear(tokens)
        if self.activation == "sigmoid":
            mask = mask.sigmoid()
        return mask * tokens, (1 - mask) * tokens


@dataclass(frozen=True)
class StreamOutput(Decoded):
    """What a stream says of each query.

    Args:
        features: Of the decoder.
        heads: Attention, as in `Decoded`.
        logits: Absent, present.
        projected: The features in the space of book embeddings.
    """

    logits: Float[torch.Tensor, "b q 2"] = field(kw_only=True)
    projected: Float[torch.Tensor, "b q e"] = field(kw_only=True)


class QueryStream(nn.Module):
    """Token projection, query decoder, classifier, and projection to the space of book embeddings.

    Args:
        token_width: Of the image's tokens.
        book_width: Of book embeddings.
        decoder: Arguments of `QueryDecoder`.
        dropout: Of the decoder's features before classifier and projection.
        norm: Normalise the projected tokens. MedKLIP and MeDSLIP do not; queries then learn later where to look.
        positions: Add sines and cosines of the place in the grid to the projected tokens. MedKLIP and MeDSLIP do not,
            and know left from right only by what the backbone's padding tells.
    """

    def __init__(
        self,
        token_width: int,
        book_width: int,
        decoder: Mapping[str, Any],
        dropout: float = 0.1,
        norm: bool = False,
        positions: bool = False,
    ) -> None:
        super().__init__()
        width = decoder["width"]
        self.tokens = nn.Sequential(nn.Linear(token_width, token_width), nn.ReLU(), nn.Linear(token_width, width))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.positions = positions
        self.decoder = QueryDecoder(**decoder)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, 2)
        self.project = nn.Linear(width, book_width)

    def forward(
        self,
        tokens: Float[torch.Tensor, "b p t"],
        queries: Float[torch.Tensor, "q d"],
        attention: bool = False,
        grid: tuple[int, ...] | None = None,
    ) -> StreamOutput:
        """Return what the stream says of each query; with `attention` also where it looked.

        Args:
            tokens: Of the image.
            queries: The same for every image.
            attention: Hand out the attention.
            grid: Tokens along each axis; needed where positions are added.
        """
        seen = self.norm(self.tokens(tokens))
        if self.positions:
            assert grid is not None
            where = grid_positions(grid, seen.shape[2], seen.device)
            seen = seen + where.to(seen.dtype)
        decoded = self.decoder(queries.expand(len(tokens), -1, -1), seen, attention)
        kept = self.dropout(decoded.features)
        return StreamOutput(decoded.features, decoded.heads, logits=self.classifier(kept), projected=self.project(kept))


def start_linear(module: nn.Module, deviation: float) -> None:
    """Draw the weights of all linear maps from N(0, deviation²) and set their biases to 0; 0 leaves torch's own start.

    MedKLIP and MeDSLIP have 0.02 at widths of 256 to 1024. Narrow maps shrink what they get by it: at a width of 64 the
    tokens would reach the decoder with a deviation of 0.03, and all patches would be attended to alike.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear) and deviation:
            nn.init.normal_(part.weight, std=deviation)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
