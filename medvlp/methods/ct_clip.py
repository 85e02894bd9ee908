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
from medvlp.errors import UserError
from medvlp.methods._choices import TEXT_UNITS, chosen
from medvlp.methods._pair_contrast import PairContrast
from medvlp.methods.base import Term
from medvlp.methods.context import MethodContext
from medvlp.models.projection import Projection
from medvlp.objectives.terms import unit
from medvlp.types import Batch, Features

if TYPE_CHECKING:
    from jaxtyping import Float


class CTCLIP(PairContrast):
    """Scale exp(θ) from θ = 1, without bound; `info_nce.epsilon` is the official 1e-20, 0 is the right cross-entropy.

    Options: `projection_input` is `flatten` (tokens averaged over depth, then all of them side by side: 294,912 numbers
    and 151 M weights at the official size) or `pooled` (the tower's own vector). `text_unit` is `report`, or for small
    data sets a `part` of it or a `sentence`, which is what prompts look like; `sentences` is how many of them each
    volume is contrasted with in a step.
    """

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        if _sentences(self.config) > 1 and not (self.shares and self.config.options["text_unit"] == "sentence"):
            raise UserError(
                "Several texts of a volume are single sentences, and positives where they are equal.",
                "method.options.sentences",
                "Set method.options.text_unit=sentence and method.options.shared_texts=positives, or leave it at 1.",
            )

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        number = _sentences(config)
        unit_of_text = chosen(config, "text_unit", (*TEXT_UNITS, "part"))
        return Demands(text_unit=unit_of_text, candidates=number if number > 1 else 0)

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
        given, read = self.texts_of(batch), batch.text_augmented
        if batch.candidates is not None:
            if read is not None:
                raise UserError(
                    "Several sentences of a volume are read as they are.",
                    "method.options.sentences",
                    "Leave changes of texts out of data.augment, or set method.options.sentences=1.",
                )
            given = batch.candidates
        image = self.project_image(self.encode_stored(batch.pixels))
        text = self.project_text(self.encode_text(read or given))
        return self.weighted({"info_nce": self.contrast(image, text, given)})


def _sentences(config: MethodConfig) -> int:
    number = int(config.options["sentences"])
    if number < 1:
        raise UserError(
            f"method.options.sentences is {number}.", "method.options.sentences", "Give a whole number from 1."
        )
    return number
