"""A queue of feature vectors of earlier batches (MoCo, arXiv 1911.05722).

Guarantee: first in, first out, whatever the sizes of the batches; contents and place are buffers, so that a resumed run
goes on with the same queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from medvlp.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float


class FeatureQueue(nn.Module):
    """The last `size` vectors; before that many have come, random unit vectors, as in MoCo and ALBEF.

    Args:
        size: Number of vectors.
        dim: Their width.

    Attributes:
        features: The vectors `[size dim]`, in no order that matters.
        place: Row that the next vector takes.
    """

    features: torch.Tensor
    place: torch.Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", functional.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, rows: Float[torch.Tensor, "n d"]) -> None:
        """Replace the oldest vectors.

        Args:
            rows: On several ranks everybody's, the same on each rank.

        Raises:
            UserError: More rows than the queue holds.
        """
        size = len(self.features)
        if len(rows) > size:
            raise UserError(
                f"A batch of {len(rows)} does not fit in a queue of {size}.",
                "method.options.queue",
                f"Give {len(rows)} or more; 65536 suits large data sets.",
            )
        at = (self.place + torch.arange(len(rows), device=self.place.device)) % size
        self.features.index_copy_(0, at, rows.to(self.features.dtype))
        self.place.add_(len(rows)).remainder_(size)
