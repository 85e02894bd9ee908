"""REFERS: the views of a study fused, its report written from them and contrasted with them (Zhou et al., NMI 2022).

Guarantee: both directions of the contrast train (the official text to image term is a plain number), pads are no
target, and negatives are those of all ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.config.towers import ImageTowerConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods._choices import TEXT_UNITS, chosen
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.projection import Projection
from medvlp.models.text_decoder import TextDecoder
from medvlp.models.view_fusion import ViewFusion
from medvlp.objectives.captioning import captioning
from medvlp.objectives.contrastive import info_nce
from medvlp.objectives.terms import unit
from medvlp.types import Batch, Features

if TYPE_CHECKING:
    from jaxtyping import Float


class REFERS(Method):
    """Objectives `info_nce` (study and report) and `captioning` (doi 10.1038/s42256-021-00425-9).

    The vector of a study is the class tokens of its views side by side; of a single image it is that image's token as
    often as there are views. In the paper this is the shared space, to which texts are mapped; a `projection.dim` of
    another width gives images a linear map of their own. `options.legacy_constant_text_term` keeps the value of
    text to image and drops its gradient. Reports are read and written with one tokenizer; the official code writes with
    another of 10,000 SentencePiece tokens, and warms up with a lookahead optimiser.
    """

    nests = True

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        assert self.config.text is not None
        self.set_scale(self.positive("info_nce", "temperature"), learnt=False)
        self.fusion = ViewFusion(self.image_encoder.dim, self.views)
        self.decoder = TextDecoder(
            context.vocab_size,
            context.pad_id,
            self.config.text.max_tokens,
            self.image_encoder.token_dim,
            **self.config.options["decoder"],
        )

    @property
    def views(self) -> int:
        """Images of a study."""
        return int(self.config.options["views"])

    def build_projections(self) -> None:
        """Make the map of texts, and that of studies where the widths differ.

        Raises:
            UserError: Tokens and pooled vector of an image have different widths.
        """
        assert self.text_encoder is not None
        tower = self.image_encoder
        if self.views < 1:
            raise UserError("A study has one view or more.", "method.options.views", "Give 3, or another number.")
        if tower.token_dim != tower.dim:
            raise UserError(
                "REFERS adds the pooled vector to the tokens, and their widths differ.",
                "method.image.tap",
                "Leave tap out, or set method.image.truncate=true.",
            )
        width, dim = self.views * tower.dim, self.config.projection.dim
        self.image_projection = nn.Identity() if width == dim else nn.Linear(width, dim)
        self.text_projection = Projection(self.text_encoder.dim, self.config.projection)

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        config.image_of(ImageTowerConfig, "REFERS reads the radiographs of a study together, and")
        unit_of_text = chosen(config, "text_unit", TEXT_UNITS)
        return Demands(text_unit=unit_of_text, study_images=int(config.options["views"]))

    def learning_rate_factors(self) -> dict[str, float]:
        """Return the smaller rate of the text tower."""
        return {"text_encoder.": float(self.config.options["text_lr_ratio"])}

    def project_image(self, features: Features) -> Float[torch.Tensor, "b d"]:
        """Return unit vectors of images, each taken as all views of its study."""
        return unit(self.image_projection(features.pooled.repeat(1, self.views)))

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `info_nce` and `captioning`, those that have a weight."""
        given = self.texts_of(batch)
        if batch.study is None or batch.study.shape[1] != self.views:
            raise UserError(
                f"REFERS needs {self.views} images of each study.", "data", "Use a store of studies with images."
            )
        features = self.encode_stored(batch.study.flatten(0, 1))
        of_view = (len(batch.study), self.views)
        fused, study, _ = self.fusion(features.tokens.unflatten(0, of_view), features.pooled.unflatten(0, of_view))
        terms: dict[str, Term] = {}
        if self.is_on("info_nce"):
            terms["info_nce"] = self.over_prefixes(
                self._contrast, unit(self.image_projection(study)), self.project_text(self.encode_text(given))
            )
        if self.is_on("captioning"):
            terms["captioning"] = captioning(self.decoder(given.ids, given.mask, fused), given.ids, given.mask)
        return self.weighted(terms)

    def _contrast(self, study: torch.Tensor, text: torch.Tensor) -> Term:
        weight = float(self.objective("info_nce")["image_weight"])
        if not self.config.options["legacy_constant_text_term"]:
            return info_nce(study, text, self.logit_scale, weight)
        (by_image, count), (by_text, _) = (info_nce(study, text, self.logit_scale, share) for share in (1.0, 0.0))
        return weight * by_image + (1 - weight) * by_text.detach(), count
