"""Fusion of the views of one study by a weight for each view at each patch (REFERS, Zhou et al., NMI 2022).

Guarantee: views are independent: a weight is a sigmoid, not a share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float


class ViewFusion(nn.Module):
    """Weights of `views` views from the vectors of all of them at the same patch.

    Args:
        width: Width `d` of tokens.
        views: Number `v` of views.
    """

    def __init__(self, width: int, views: int) -> None:
        super().__init__()
        self.weight = nn.Linear(views * width, views)

    def forward(
        self, tokens: Float[torch.Tensor, "b v p d"], pooled: Float[torch.Tensor, "b v d"]
    ) -> tuple[Float[torch.Tensor, "b n d"], Float[torch.Tensor, "b e"], Float[torch.Tensor, "b p v"]]:
        """Return the weighted patches of all views one after the other, the study's vector, and the weights.

        Args:
            tokens: Patches of each view.
            pooled: Class token of each view; it is added to the view's patches.

        Returns:
            fused: `[b v·p d]`.
            study: The class tokens side by side, `[b v·d]`.
            weights: Between 0 and 1.
        """
        tokens = tokens + pooled[:, :, None]
        weights = self.weight(tokens.transpose(1, 2).flatten(2)).sigmoid()
        fused = tokens * weights.transpose(1, 2)[..., None]
        return fused.flatten(1, 2), pooled.flatten(1), weights
