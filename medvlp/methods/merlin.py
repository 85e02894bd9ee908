"""Merlin: contrast of abdominal CTs with reports and their parts, and findings from codes (arXiv 2406.06512).

Guarantee: a finding that is not mentioned (-1 or NaN) is no term of the loss. The official repository holds no training
code: the equal weights of both terms, how a report is split and the exponential of the scale are ours.
"""

from __future__ import annotations

from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods._choices import chosen
from medvlp.methods._pair_contrast import PairContrast
from medvlp.methods.base import Term
from medvlp.methods.context import MethodContext
from medvlp.objectives.triplets import existence_bce
from medvlp.types import Batch

TEXT_UNITS = ("report", "part")


class Merlin(PairContrast):
    """Objectives `info_nce` and `bce`, the latter over the label columns of the data set (official: 1,692 phecodes).

    `options.text_unit: part` is the report splitting of the paper: the text of a volume is its report or, as often,
    what the report says of one organ (`text.organs`). Either term alone is a stage of the paper's staged training.

    Attributes:
        label_head: From the pooled vector to the logit of each label, where `bce` has a weight.
    """

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        if self.is_on("bce"):
            if not context.label_names:
                raise UserError(
                    "Merlin learns labels, and the data set has none.",
                    "method.objectives.bce.weight",
                    "Use a store with labels, or set the weight to 0.",
                )
            self.label_head = nn.Linear(self.image_encoder.dim, len(context.label_names))

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return Demands(
            labels=config.objectives["bce"]["weight"] != 0, text_unit=chosen(config, "text_unit", TEXT_UNITS)
        )

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `info_nce` and `bce`, those that have a weight."""
        features = self.encode_stored(batch.pixels)
        terms: dict[str, Term] = {}
        if self.is_on("info_nce"):
            given = self.texts_of(batch)
            text = self.project_text(self.encode_text(batch.text_augmented or given))
            terms["info_nce"] = self.contrast(self.project_image(features), text, given)
        if self.is_on("bce"):
            if batch.labels is None:
                raise UserError("Merlin needs labels.", "data", "Use a store with labels.")
            labels = batch.labels.nan_to_num(-1.0)
            terms["bce"] = existence_bce(self.label_head(features.pooled), labels)
        return self.weighted(terms)
