"""A vector quantiser by cosines, whose codes follow the tokens by moving averages (arXiv 1711.00937, A.1).

Guarantee: a token takes the code of the largest cosine, and what is returned is the row of the table as it stands, not
its direction; the gradient passes to the token. Codes move in training mode only, by the same amount on every rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed import all_reduce, is_available, is_initialized
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Float, Int

CHUNK = 4096
"""Tokens that are compared with all codes at a time."""


class Quantiser(nn.Module):
    """A table of codes.

    Args:
        codes: Number `k` of codes.
        dim: Width of tokens and codes.
        decay: Share of a code that stays in a step in which tokens took it.

    Attributes:
        table: `[k d]`, moved by the tokens, not by gradients.
    """

    table: torch.Tensor

    def __init__(self, codes: int, dim: int, decay: float = 0.8) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("table", functional.normalize(torch.randn(codes, dim), dim=1))

    def forward(self, tokens: Float[torch.Tensor, "*n d"]) -> Float[torch.Tensor, "*n d"]:
        """Return the code of every token, with the gradient of the token."""
        flat = tokens.flatten(0, -2)
        chosen = self.choose(flat)
        codes = self.table[chosen].to(tokens.dtype)
        if self.training:
            self._move(flat.detach(), chosen)
            codes = flat + (codes - flat).detach()
        return codes.view_as(tokens)

    @torch.no_grad()
    def choose(self, tokens: Float[torch.Tensor, "n d"]) -> Int[torch.Tensor, " n"]:
        """Return the number of the code of the largest cosine; in at least float32."""
        with torch.autocast(tokens.device.type, enabled=False):
            table = functional.normalize(self.table, dim=1)
            parts = (part.to(table.dtype) for part in tokens.split(CHUNK))
            return torch.cat([(functional.normalize(part, dim=1) @ table.T).argmax(1) for part in parts])

    @torch.no_grad()
    def _move(self, tokens: torch.Tensor, chosen: torch.Tensor) -> None:
        """Take the mean direction of the tokens of each code into it; codes that no token took stay."""
        directions = functional.normalize(tokens.to(self.table.dtype), dim=1)
        sums = torch.zeros_like(self.table).index_add_(0, chosen, directions)
        counts = sums.new_zeros(len(sums)).index_add_(0, chosen, sums.new_ones(len(chosen)))
        if is_available() and is_initialized():
            all_reduce(sums)
            all_reduce(counts)
        target = torch.where(counts[:, None] > 0, functional.normalize(sums, dim=1), self.table)
        self.table.lerp_(target, 1 - self.decay)
