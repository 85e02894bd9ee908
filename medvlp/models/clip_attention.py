"""Attention over the clips of a study: how much each of them says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float


class ClipAttention(nn.Module):
    """Gated attention of multiple-instance learning (Ilse et al., arXiv 1802.04712, equation 9).

    Args:
        width: Of the vectors of clips.
        hidden: Of the gate.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.content, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)  # the same for all clips would change no softmax

    def forward(self, clips: Float[torch.Tensor, "b v d"]) -> Float[torch.Tensor, "b v"]:
        """Return the share of each clip; the shares of a study sum to 1."""
        scores = self.score(self.content(clips).tanh() * self.gate(clips).sigmoid())
        return scores[..., 0].float().softmax(1)
