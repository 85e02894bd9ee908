"""A transformer decoder in the manner of DETR: queries attend to each other, then to the tokens of an image.

Guarantee: layers and parameter names are those of `torch.nn.TransformerDecoderLayer`, normalised before each part, so
that released query decoders load by name. The attention over the image that is handed out is the one that was used, the
mean over heads; without being asked for it, fused kernels run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medvlp.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Decoded:
    """Output of a query decoder.

    Args:
        features: Of each query, behind the last norm.
        attention: What each query attends to in each layer, `[layers b q p]`, a softmax over the tokens, the mean over
            heads; None unless asked for.
    """

    features: Float[torch.Tensor, "b q d"]
    attention: Float[torch.Tensor, "layers b q p"] | None = None


class QueryDecoder(nn.Module):
    """Layers of self-attention, attention to an image and a feed-forward part, then a last norm.

    No position is added to queries or tokens (MedKLIP and MeDSLIP add none).

    Args:
        width: Of queries and tokens.
        layers: How many.
        heads: Of each attention.
        ffn: Hidden width of the feed-forward part.
        dropout: Of attention weights, of the hidden layer and of what each part adds.
        eps: Of the norms.

    Raises:
        UserError: The width does not split into heads.
    """

    def __init__(
        self, width: int, layers: int = 4, heads: int = 4, ffn: int = 1024, dropout: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        if width % heads:
            raise UserError(
                f"A width of {width} does not split into {heads} heads.",
                "method.options.decoder",
                "Give a width that is a multiple of heads.",
            )
        self.layers = nn.ModuleList(_Layer(width, heads, ffn, dropout, eps) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(
        self, queries: Float[torch.Tensor, "b q d"], tokens: Float[torch.Tensor, "b p d"], attention: bool = False
    ) -> Decoded:
        """Return the features of the queries, and their attention where it is asked for."""
        maps = []
        for layer in self.layers:
            queries, attended = layer(queries, tokens, attention)
            maps.append(attended)
        return Decoded(self.norm(queries), torch.stack(maps) if attention else None)


class _Layer(nn.TransformerDecoderLayer):
    """torch's layer, which keeps the attention to itself, with the attention handed out."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float, eps: float) -> None:
        super().__init__(width, heads, ffn, dropout, layer_norm_eps=eps, batch_first=True, norm_first=True)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor, attention: bool = False) -> Any:  # type: ignore[override]
        own = self.norm1(queries)
        queries = queries + self.dropout1(self.self_attn(own, own, own, need_weights=False)[0])
        seen, weights = self.multihead_attn(self.norm2(queries), tokens, tokens, need_weights=attention)
        queries = queries + self.dropout2(seen)
        hidden = self.dropout(self.activation(self.linear1(self.norm3(queries))))
        return queries + self.dropout3(self.linear2(hidden)), weights
