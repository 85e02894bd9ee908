"""CT-CLIP: contrast of chest CTs with their reports (Hamamci et al., arXiv 2403.17834).

Guarantee: with `projection_input: flatten` the vector of a volume keeps where in the plane its tokens lie, as in the
official code; the contrast is that of all ranks, where the official code has the pairs of one GPU alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.methods._choices import TEXT_UNITS, chosen
from medvlp.methods._pair_contrast import PairContrast
from medvlp.methods.base import Term
from medvlp.models.projection import Projection
from medvlp.objectives.terms import unit
from medvlp.types import Batch, Features

if TYPE_CHECKING:
    from jaxtyping import Float


class CTCLIP(PairContrast):
    """Scale exp(θ) from θ = 1, without bound; `info_nce.epsilon` is the official 1e-20, 0 is the right cross-entropy.

    Options: `projection_input` is `flatten` (tokens averaged over depth, then all of them side by side: 294,912 numbers
    and 151 M weights at the official size) or `pooled` (the tower's own vector). `text_unit` is `report`, or for small
    data sets a `part` of it or a `sentence`, which is what prompts look like.
    """

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return Demands(text_unit=chosen(config, "text_unit", (*TEXT_UNITS, "part")))

    def build_projections(self) -> None:
        """Make the linear maps, without bias in the official configuration."""
        assert self.text_encoder is not None
        tower, config = self.image_encoder, self.config
        self.flattens = chosen(config, "projection_input", ("flatten", "pooled")) == "flatten"
        width = tower.dim
        if self.flattens:
            size = config.image.input.size
            sides = size if isinstance(size, tuple) else (size, size)
            _, *plane = tower.grid_of(torch.empty(1, config.image.input.channels, *sides, device="meta"))
            width = tower.token_dim
            for cells in plane:
                width *= cells
            self.image_projection: nn.Module = nn.Linear(width, config.projection.dim, bias=config.projection.bias)
        else:
            self.image_projection = Projection(width, config.projection)
        self.text_projection = Projection(self.text_encoder.dim, config.projection)

    def project_image(self, features: Features) -> Float[torch.Tensor, "b d"]:
        """Return unit vectors of volumes."""
        if not self.flattens:
            return super().project_image(features)
        planes = features.tokens.unflatten(1, features.grid).mean(1)
        return unit(self.image_projection(planes.flatten(1)))

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `info_nce`, of the augmented reading of the texts where there is one."""
        given = self.texts_of(batch)
        image = self.project_image(self.encode_stored(batch.pixels))
        text = self.project_text(self.encode_text(batch.text_augmented or given))
        return self.weighted({"info_nce": self.contrast(image, text, given)})
