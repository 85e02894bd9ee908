"""A causal text decoder over image tokens, for captioning as pre-training.

Guarantee: a place sees image tokens and the tokens up to itself, never what follows; output and input embeddings are
one table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class TextDecoder(nn.Module):
    """Token and position embeddings, torch's transformer decoder, and logits by the token table.

    VirTex (arXiv 2006.06666), as used by REFERS: norms behind each block, GELU, feed-forward of four times the width.

    Args:
        vocab_size: Number `v` of tokens.
        pad_id: Padding token.
        max_tokens: Longest text.
        memory_dim: Width of the image tokens.
        hidden: Width.
        layers: Number of layers.
        heads: Attention heads.
        dropout: Of embeddings and layers.
    """

    def __init__(
        self,
        vocab_size: int,
        pad_id: int,
        max_tokens: int,
        memory_dim: int,
        hidden: int = 1024,
        layers: int = 1,
        heads: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.memory = nn.Linear(memory_dim, hidden)
        self.tokens = nn.Embedding(vocab_size, hidden, padding_idx=pad_id)
        self.positions = nn.Embedding(max_tokens, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerDecoderLayer(hidden, heads, 4 * hidden, dropout, "gelu", batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.apply(_initialise)

    def forward(
        self,
        ids: Int[torch.Tensor, "b l"],
        mask: Bool[torch.Tensor, "b l"],
        memory: Float[torch.Tensor, "b p d"],
    ) -> Float[torch.Tensor, "b l v"]:
        """Return at each place the logits of the token that follows.

        Args:
            ids: Tokens, not longer than `max_tokens`.
            mask: True at real tokens; pads stand at the end.
            memory: Image tokens.
        """
        length = ids.shape[1]
        embedded = self.tokens(ids) + self.positions.weight[:length]
        future = torch.ones(length, length, dtype=torch.bool, device=ids.device).triu(1)
        # Pads stand behind all real tokens, so the causal mask already hides them from those.
        states = self.decoder(
            self.dropout(self.norm(embedded)), self.memory(memory), tgt_mask=future, tgt_is_causal=True
        )
        return states.masked_fill(~mask[..., None], 0.0) @ self.tokens.weight.T + self.bias


def _initialise(module: nn.Module) -> None:
    """As BERT: a token table of deviation 1 would make the first logits as large as the width."""
    if isinstance(module, nn.Embedding | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
