"""SigLIP: every image with every text is a yes-no question of its own (Zhai et al., arXiv 2303.15343).

Guarantee: the pairwise sigmoid loss over all ranks' pairs, exactly as in one process.
"""

from __future__ import annotations

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.projection import UnitLength
from medvlp.objectives.contrastive import sigmoid_pairs
from medvlp.types import Batch


class SigLIP(Method):
    """Learnt scale from 10 and bias from -10, neither bounded, as in the official training.

    The official towers end in heads of their own (attention pool, linear layer) and are compared as they are:
    `options.project: false`. With other towers `projection` goes behind each.

    Attributes:
        logit_bias: `[1]`, added to all logits.
    """

    nests = True

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.set_scale(self.positive("sigmoid", "temperature"), learnt=True)
        self.logit_bias = nn.Parameter(torch.tensor([float(self.objective("sigmoid")["bias"])]))

    def build_projections(self) -> None:
        """Make the projections, or none where the towers end in one width and `options.project` is off."""
        if self.config.options["project"]:
            super().build_projections()
            return
        assert self.text_encoder is not None
        self.image_projection = UnitLength(self.image_encoder.dim, self.text_encoder.dim)
        self.text_projection = UnitLength(self.text_encoder.dim, self.text_encoder.dim)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `sigmoid`, of the augmented reading of the texts where there is one."""
        given = self.texts_of(batch)
        image = self.project_image(self.encode_stored(batch.pixels))
        text = self.project_text(self.encode_text(batch.text_augmented or given))
        scale, bias = self.logit_scale, self.logit_bias.squeeze()
        return self.weighted(
            {"sigmoid": self.over_prefixes(lambda x, y: sigmoid_pairs(x, y, scale, bias), image, text)}
        )
