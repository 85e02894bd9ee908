"""ConceptCLIP's released model: patches and words are projected by heads of their own, with a scale of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medvlp.zoo.release import Release
from medvlp.zoo.released import ReleasedModel

if TYPE_CHECKING:
    from jaxtyping import Float


class ConceptModel(ReleasedModel):
    """Two towers, a projection of texts, and projections of patches and words.

    Attributes:
        bias: Added to `logit_scale * cosine` in the sigmoid loss of images and texts; scores go without it.
        concept_bias: Likewise of patches and concepts.
    """

    def __init__(self, release: Release) -> None:
        super().__init__(release)
        self.bias = nn.Parameter(torch.zeros(()))
        self.concept_log_scale = nn.Parameter(torch.zeros(()))
        self.concept_bias = nn.Parameter(torch.zeros(()))

    @property
    def concept_logit_scale(self) -> Float[torch.Tensor, ""]:
        """Factor of cosines between patches and concepts."""
        return self.concept_log_scale.exp()
