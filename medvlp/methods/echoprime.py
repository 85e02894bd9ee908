"""EchoPrime: contrast of echocardiographic clips, and of whole studies of clips, with reports (arXiv 2410.09704).

Guarantee: the vector of a study does not depend on the order of its clips; one clip alone is its own study. Negatives
are those of all ranks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from medvlp.config.methods import MethodConfig
from medvlp.config.towers import ClipTowerConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods._choices import TEXT_UNITS, chosen
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.clip_attention import ClipAttention
from medvlp.objectives.contrastive import info_nce
from medvlp.objectives.terms import unit
from medvlp.types import Batch

if TYPE_CHECKING:
    from jaxtyping import Float


class EchoPrime(Method):
    """Objectives `clip_text` and `study_text`.

    `clip_text` is CLIP's contrast of a clip and the report of its study. `study_text` is the same of the study: the sum
    of its clips, each weighted by attention. The released model has a table of weights for views and sections of the
    report in its place, with which `medvlp.objectives.study_reading` forms a vector for each section. No training code
    is published: scale, batch and attention are stand-ins.
    """

    nests = True

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.config.image_of(ClipTowerConfig, f"The method '{config.name}'")
        clips = int(self.config.options["study_clips"])
        if clips < 1 or (clips == 1) == self.is_on("study_text"):
            raise UserError(
                f"method.options.study_clips is {clips}: study_text needs 2 or more, and nothing else takes them.",
                "method.options.study_clips",
                "Give 1 and method.objectives.study_text.weight=0, or 2 and more and a weight.",
            )
        self.set_scale(self.positive("clip_text", "temperature"), learnt=True)
        self.max_log_scale = math.log(self.positive("clip_text", "max_scale"))
        if clips > 1:
            self.attention = ClipAttention(self.config.projection.dim, int(self.config.options["attention_hidden"]))

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines, between 1 and `max_scale`."""
        return self.scale_within(0.0, self.max_log_scale)

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        clips = int(config.options["study_clips"])
        return Demands(text_unit=chosen(config, "text_unit", TEXT_UNITS), study_images=clips if clips > 1 else 0)

    def study_vectors(self, clips: Float[torch.Tensor, "b v d"]) -> Float[torch.Tensor, "b d"]:
        """Return unit vectors of studies from the unit vectors of their clips.

        Raises:
            UserError: The model was trained on single clips.
        """
        if not hasattr(self, "attention"):
            raise UserError(
                "The model was trained on single clips and cannot weigh those of a study.",
                "method.options.study_clips",
                "Train with 2 or more.",
            )
        return unit((self.attention(clips)[..., None] * clips).sum(1))

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `clip_text` and `study_text`, those that have a weight."""
        given, scale = self.texts_of(batch), self.logit_scale
        text = self.project_text(self.encode_text(batch.text_augmented or given))
        if batch.study is None:
            own = self.project_image(self.encode_stored(batch.pixels))
            return self.weighted({"clip_text": self.over_prefixes(lambda x, y: info_nce(x, y, scale), own, text)})
        clips = self.project_image(self.encode_stored(batch.study.flatten(0, 1))).unflatten(0, batch.study.shape[:2])
        terms: dict[str, Term] = {}
        for name, vectors in (("clip_text", clips[:, 0]), ("study_text", self.study_vectors(clips))):
            if self.is_on(name):
                terms[name] = self.over_prefixes(lambda x, y: info_nce(x, y, scale), vectors, text)
        return self.weighted(terms)
