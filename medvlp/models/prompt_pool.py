"""A pool of soft prompts, of which each sample gets the rows nearest to its query (PTUnifier, arXiv 2302.08958).

Guarantee: which rows is decided without gradient, their values carry one, so that the pool learns. The released code
looks everything up without gradient, and its pools keep their first values (`legacy_frozen`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medvlp.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class PromptPool(nn.Module):
    """Soft prompts.

    Args:
        size: Rows of the pool.
        width: Width `d` of a row.
        chosen: Rows that each sample gets.
        legacy_frozen: The pool does not learn.

    Raises:
        UserError: More rows are asked for than there are.
    """

    def __init__(self, size: int, width: int, chosen: int, legacy_frozen: bool = False) -> None:
        super().__init__()
        if not 1 <= chosen <= size:
            raise UserError(
                f"A pool of {size} rows cannot give {chosen}.", "method.options.pools", "Give 1 up to the pool's size."
            )
        self.chosen = chosen
        self.rows = nn.Parameter(0.02 * torch.randn(size, width), requires_grad=not legacy_frozen)

    def forward(self, query: Float[torch.Tensor, "b d"]) -> Float[torch.Tensor, "b k d"]:
        """Return the rows of each sample, the nearest first."""
        return look_up(query, self.rows, self.chosen)[0]


def look_up(
    query: Float[torch.Tensor, "b d"], pool: Float[torch.Tensor, "n d"], chosen: int
) -> tuple[Float[torch.Tensor, "b k d"], Int[torch.Tensor, "b k"]]:
    """Return the rows with the largest dot product with each query, in descending order, and their numbers."""
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        index = (query.to(pool.dtype) @ pool.T).topk(chosen, dim=1).indices
    return pool[index], index


def mean_of_text(embedded: Float[torch.Tensor, "b l d"], mask: Bool[torch.Tensor, "b l"]) -> Float[torch.Tensor, "b d"]:
    """Return the mean embedding of a text without its first token, the query of a missing image; pads do not count."""
    weight = mask[:, 1:, None].to(embedded.dtype)
    return (embedded[:, 1:] * weight).sum(1) / (weight.sum(1) + 1e-8)
