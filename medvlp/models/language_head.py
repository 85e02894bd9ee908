"""Prediction of tokens from the states of a text encoder: BERT's head.

Guarantee: a tied head owns no second copy of the embedding; logits are for the caller to cast.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class LanguageHead(nn.Module):
    """Linear - GELU - LayerNorm - vocabulary (BERT, arXiv 1810.04805).

    Args:
        width: Width of the states.
        vocab_size: Tokens.
        tied: The vocabulary's matrix is the word embedding that is given to `forward`.
        eps: Of the norm.
    """

    def __init__(self, width: int, vocab_size: int, tied: bool = False, eps: float = 1e-12) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.decoder = None if tied else nn.Linear(width, vocab_size, bias=False)
        start_as_bert(self, width)

    def forward(
        self, states: Float[torch.Tensor, "*n d"], embedding: Float[torch.Tensor, "v d"] | None = None
    ) -> Float[torch.Tensor, "*n v"]:
        """Return the logits of the tokens.

        Args:
            states: Of the tokens that are asked for, e.g. `tokens[hidden]`.
            embedding: The word embedding of a tied head.
        """
        states = self.norm(functional.gelu(self.dense(states)))
        matrix = embedding if self.decoder is None else self.decoder.weight
        assert matrix is not None
        return functional.linear(states, matrix[: len(self.bias)], self.bias)


def start_as_bert(module: nn.Module, width: int) -> None:
    """Start linear maps, attentions and embeddings below a module as BERT does, biases from 0.

    BERT's standard deviation of 0.02 belongs to its width of 768; at other widths it is such that a map changes lengths
    as much, or narrow models would hardly see what they attend to.
    """
    deviation = 0.02 * math.sqrt(768 / width)
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=deviation)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.MultiheadAttention):
            nn.init.normal_(part.in_proj_weight, std=deviation)


def hide_tokens(
    ids: Int[torch.Tensor, "b l"],
    hidden: Bool[torch.Tensor, "b l"],
    mask_id: int,
    vocab_size: int,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> Int[torch.Tensor, "b l"]:
    """Return the ids as the encoder sees them: hidden tokens are masked, random, or as they were.

    BERT (arXiv 1810.04805, section 3.1) has 0.8, 0.1 and 0.1; MRM masks all. Draws come from torch's global generator.
    """
    draw = torch.rand(ids.shape, device=ids.device)
    others = torch.randint(vocab_size, ids.shape, device=ids.device)
    seen = torch.where(draw < mask_share, mask_id, torch.where(draw < mask_share + random_share, others, ids))
    return torch.where(hidden, seen, ids)
