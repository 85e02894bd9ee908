"""KEEP: semantic groups of images and captions of one concept, told apart along an ontology (arXiv 2412.13126).

Guarantee: the group metric over all ranks' groups, in log-sum-exp; groups of one concept, or of an ancestor and its
descendant, are never pushed apart.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.projection import Projection, UnitLength
from medvlp.objectives.group_metric import group_metric
from medvlp.types import Batch


class KEEP(Method):
    """Visual head behind the image tower, BERT's pooler as the text's vector; scale from 1/0.04 up to 100.

    Towers stay fixed in the first epoch (`options.frozen_epochs`) while the visual head and the scale learn. The text
    of an image is a caption of its group's concept or its own report; the official code draws captions of the group.
    `group_metric`, `prompt_scores` and `best_prompts` of `medvlp.objectives.group_metric` rank prompt classifiers.
    """

    nests = True

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.set_scale(self.positive("group_metric", "temperature"), learnt=True)
        self.max_log_scale = math.log(self.positive("group_metric", "max_scale"))

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        options = config.options
        return Demands(group_size=options["group_size"], caption_share=options["caption_share"])

    def build_projections(self) -> None:
        """Make the visual head, to the width of the text tower, whose own pooler is the projection of texts."""
        assert self.text_encoder is not None
        width = self.text_encoder.dim
        self.image_projection = Projection(
            self.image_encoder.dim, self.config.projection.model_copy(update={"dim": width})
        )
        self.text_projection = UnitLength(width, width)

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines, between 1 and `max_scale`."""
        return self.scale_within(0.0, self.max_log_scale)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `group_metric`.

        Raises:
            UserError: The batch has no semantic groups, or they are not of equal size.
        """
        text = self.texts_of(batch)
        related = self._related(batch)
        image = self.project_image(self.encode_stored(batch.pixels))
        vectors = self.project_text(self.encode_text(text))
        scale, variant = self.logit_scale, self.objective("group_metric")["variant"]
        term = self.over_prefixes(lambda x, y: group_metric(x, y, related, scale, variant), image, vectors)
        return self.weighted({"group_metric": term})

    def adjust_gradients(self) -> None:
        """Hold both towers fixed in the first epochs, as the official training does."""
        if self.progress.epoch < self.config.options["frozen_epochs"]:
            for tower in (self.image_encoder, self.text_encoder):
                assert tower is not None
                for parameter in tower.parameters():
                    parameter.grad = None

    def _related(self, batch: Batch) -> Bool[torch.Tensor, "g all_g"]:
        """Return which groups must not be told apart."""
        if batch.related is None or batch.groups is None:
            raise UserError(
                "KEEP needs semantic groups, the batch has none.",
                "data",
                "Use a store with reports that name findings.",
            )
        if len(batch.related) and len(batch.pixels) % len(batch.related):
            raise UserError(
                f"{len(batch.pixels)} images are not {len(batch.related)} groups of one size.",
                "train.batch_size",
                f"Give a multiple of {self.config.options['group_size']}.",
            )
        return batch.related
