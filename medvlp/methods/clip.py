"""CLIP: contrast of images and texts with a learnt scale (Radford et al., arXiv 2103.00020).

Guarantee: one symmetric InfoNCE over all ranks' pairs; the logarithm of the scale never leaves [0, ln max_scale], as in
the official training.
"""

from __future__ import annotations

import math

import torch

from medvlp.config.methods import MethodConfig
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.objectives.contrastive import info_nce
from medvlp.types import Batch


class CLIP(Method):
    """Scale from 1/0.07 up to 100; towers without a class token or end-of-text token are pooled as configured."""

    nests = True

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.set_scale(self.positive("info_nce", "temperature"), learnt=True)
        self.max_log_scale = math.log(self.positive("info_nce", "max_scale"))

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines, between 1 and `max_scale`."""
        return self.scale_within(0.0, self.max_log_scale)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `info_nce`, of the augmented reading of the texts where there is one."""
        given = self.texts_of(batch)
        image = self.project_image(self.encode_stored(batch.pixels))
        text = self.project_text(self.encode_text(batch.text_augmented or given))
        scale = self.logit_scale
        return self.weighted({"info_nce": self.over_prefixes(lambda x, y: info_nce(x, y, scale), image, text)})
