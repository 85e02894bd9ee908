"""ConVIRT: contrast of paired radiographs and report texts (Zhang et al., arXiv 2010.00747).

Guarantee: one InfoNCE over all ranks' pairs; both towers train (a public re-implementation leaves its text projection
without gradient).
"""

from __future__ import annotations

import math

import torch

from medvlp.config.methods import MethodConfig
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.objectives.contrastive import info_nce
from medvlp.types import Batch

MAX_LOG_SCALE = math.log(100.0)


class ConVIRT(Method):
    """Temperature 0.1 and weight 0.75 on image to text by default; `options.learn_temperature` makes it a parameter."""

    nests = True

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.set_scale(self.positive("info_nce", "temperature"), self.config.options["learn_temperature"])

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines, 1/T; a learnt one stays between 1 and 100."""
        return self.scale_within(0.0, MAX_LOG_SCALE)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `info_nce`, of the augmented reading of the texts where there is one."""
        given = self.texts_of(batch)
        image = self.project_image(self.encode_stored(batch.pixels))
        text = self.project_text(self.encode_text(batch.text_augmented or given))
        scale, image_weight = self.logit_scale, self.objective("info_nce")["image_weight"]
        term = self.over_prefixes(lambda x, y: info_nce(x, y, scale, image_weight), image, text)
        return self.weighted({"info_nce": term})
