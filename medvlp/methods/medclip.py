"""MedCLIP: images and sentences that were never paired, tied by their findings (Wang et al., arXiv 2210.10163).

Guarantee: soft-label contrast over all ranks' images and sentences, value and gradient as in the official code.

Label vectors hold the same columns for images and sentences: 1 present, 0 absent, -1 uncertain, NaN not mentioned. As
in MedCLIP, NaN counts 0 in the similarity, so that an absent finding weighs as little as an unmentioned one: it is the
column "No Finding" that ties a normal image to a normal sentence, and a column that only one side fills adds nothing.
"""

from __future__ import annotations

import torch

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.objectives.contrastive import soft_label_ce
from medvlp.types import Batch


class MedCLIP(Method):
    """Learnt scale from 1/0.07, its logarithm kept in [0, 4.6052]; augmented texts count as much as the originals."""

    nests = True

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.set_scale(self.positive("soft_label", "temperature"), learnt=True)

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return Demands(labels=True, paired=False)

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines, between 1 and exp(max_log_scale)."""
        return self.scale_within(0.0, self.objective("soft_label")["max_log_scale"])

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `soft_label`."""
        text = self.texts_of(batch)
        if batch.labels is None or text.labels is None:
            raise UserError("MedCLIP needs labels of images and of sentences.", "data", "Use a store with labels.")
        readings = [text] if batch.text_augmented is None else [text, batch.text_augmented]
        labels = batch.labels, text.labels
        scale, target_scale = self.logit_scale, self.objective("soft_label")["target_scale"]

        def contrast(image: torch.Tensor, first: torch.Tensor, second: torch.Tensor | None = None) -> Term:
            return soft_label_ce(image, first, *labels, scale, second, target_scale)

        image = self.project_image(self.encode_stored(batch.pixels))
        vectors = [self.project_text(self.encode_text(reading)) for reading in readings]
        return self.weighted({"soft_label": self.over_prefixes(contrast, image, *vectors)})
