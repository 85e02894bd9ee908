"""A transformer decoder in the manner of DETR: queries attend to each other, then to the tokens of an image.

Guarantee: layers and parameter names are those of `torch.nn.TransformerDecoderLayer`, normalised before each part, so
that released query decoders load by name. The attention over the image that is handed out is the one that was used;
without being asked for it, fused kernels run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from medvlp.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Decoded:
    """Output of a query decoder.

    Args:
        features: Of each query, behind the last norm.
        heads: What each query attends to in each head of each layer, a softmax over the tokens, in the graph; empty
            unless asked for.
    """

    features: Float[torch.Tensor, "b q d"]
    heads: tuple[Float[torch.Tensor, "b h q p"], ...] = ()

    @property
    def attention(self) -> Float[torch.Tensor, "layers b q p"]:
        """The mean over the heads of each layer."""
        return torch.stack([layer.mean(1) for layer in self.heads])


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
        heads = []
        for layer in self.layers:
            queries, attended = layer(queries, tokens, attention)
            heads.append(attended)
        return Decoded(self.norm(queries), tuple(heads) if attention else ())


def evidence(score: Float[torch.Tensor, ""], heads: Sequence[torch.Tensor]) -> Float[torch.Tensor, "b p"]:
    """Return how much the attention to each token raises a score: the sum of (gradient × attention) where positive.

    Over queries, heads and layers, after Chefer et al. (arXiv 2103.15679, equation 5). Attention alone says where a
    query looked, also for what is not there.

    Args:
        score: A sum over images, each of which depends on its own attention alone.
        heads: As in `Decoded`; the graph is kept.
    """
    gradients = torch.autograd.grad(score, heads, retain_graph=True)
    parts = [(g.float() * a.float()).clamp_min(0).sum((1, 2)) for g, a in zip(gradients, heads, strict=True)]
    return torch.stack(parts).sum(0).detach()


class _Layer(nn.TransformerDecoderLayer):
    """torch's layer, which keeps the attention to itself, with the attention handed out."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float, eps: float) -> None:
        super().__init__(width, heads, ffn, dropout, layer_norm_eps=eps, batch_first=True, norm_first=True)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor, attention: bool = False) -> Any:  # type: ignore[override]
        own = self.norm1(queries)
        queries = queries + self.dropout1(self.self_attn(own, own, own, need_weights=False)[0])
        look = self._look if attention else self.multihead_attn
        seen, heads = look(self.norm2(queries), tokens, tokens, need_weights=False)
        queries = queries + self.dropout2(seen)
        hidden = self.dropout(self.activation(self.linear1(self.norm3(queries))))
        return queries + self.dropout3(self.linear2(hidden)), heads

    def _look(self, *inputs: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend as `multihead_attn` does, and return the attention of each head, on which what follows depends."""
        module = self.multihead_attn
        weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
        query, key, value = (
            functional.linear(x, weight, bias).unflatten(2, (module.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        )
        heads = (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).softmax(3)
        seen = functional.dropout(heads, module.dropout, self.training) @ value
        return module.out_proj(seen.transpose(1, 2).flatten(2)), heads
