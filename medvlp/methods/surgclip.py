"""SurgCLIP: contrast of clips and captions (SurgLaVi, arXiv 2509.10555), and by its weights the losses of SurgVLP.

Guarantee: every reading of a clip shows the same frames; candidates of a clip are sentences of its own text; negatives
are those of all ranks. A setting without effect is an error.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from medvlp.config.methods import MethodConfig
from medvlp.config.towers import ClipTowerConfig
from medvlp.data.demands import Demands, View
from medvlp.errors import UserError
from medvlp.methods._choices import TEXT_UNITS, chosen
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.objectives.contrastive import info_nce
from medvlp.objectives.terms import mean_of
from medvlp.objectives.video_text import mil_nce
from medvlp.objectives.volume_views import nt_xent
from medvlp.types import Batch

if TYPE_CHECKING:
    from jaxtyping import Float

MAX_LOG_SCALE = math.log(100.0)


class SurgCLIP(Method):
    """Objectives `clip_text`, `weighted`, `mil_nce` and `two_views`.

    SurgCLIP is `clip_text` alone, of one reading of each clip; temperature and recipe are not published. SurgVLP
    (arXiv 2307.15220, as in the training code released with PeskaVLP) is all four at a weight of 1/4, with
    `options.readings: 3` (clean, and two augmented), `options.candidates: 2` and a fixed temperature of 0.1. There
    `weighted` is called NT-Xent; it is InfoNCE with 3/4 on clip to text. `mil_nce` takes plain products of vectors that
    are not brought to unit length. `options.legacy_positives_twice` counts its positives in both sums of its
    denominator, as that code does, and `options.legacy_pad_mean` averages texts over pads.
    """

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.config.image_of(ClipTowerConfig, f"The method '{config.name}'")
        self._check_options()
        self.set_scale(self.positive("clip_text", "temperature"), self.config.options["learn_temperature"])

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines, 1/T; a learnt one stays between 1 and 100."""
        return self.scale_within(0.0, MAX_LOG_SCALE)

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        options = config.options
        low, high = options["augmented_crop_scale"]
        view = View(config.image_of(ClipTowerConfig, "SurgCLIP").input.size, (float(low), float(high)))
        return Demands(
            text_unit=chosen(config, "text_unit", TEXT_UNITS),
            views=(view,) * (int(options["readings"]) - 1),
            candidates=int(options["candidates"]),
        )

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return the terms that have a weight; all but `two_views` are means over the readings."""
        given, scale = self.texts_of(batch), self.logit_scale
        pooled = [self.encode_stored(pixels).pooled for pixels in (batch.pixels, *batch.views)]
        clips = [self.image_projection.unscaled(each) for each in pooled]  # type: ignore[operator]
        terms: dict[str, Term] = {}
        if self.is_on("clip_text") or self.is_on("weighted"):
            text = self.project_text(self.encode_text(batch.text_augmented or given))
            if self.is_on("clip_text"):
                terms["clip_text"] = mean_of([info_nce(clip, text, scale) for clip in clips])
            if self.is_on("weighted"):
                share = float(self.objective("weighted")["clip_weight"])
                terms["weighted"] = mean_of([info_nce(clip, text, scale, share) for clip in clips])
        if self.is_on("mil_nce"):
            candidates, twice = self._candidates(batch), bool(self.config.options["legacy_positives_twice"])
            terms["mil_nce"] = mean_of([mil_nce(clip, candidates, twice) for clip in clips])
        if self.is_on("two_views"):
            terms["two_views"] = nt_xent(clips[1], clips[2], scale)
        return self.weighted(terms)

    def _candidates(self, batch: Batch) -> Float[torch.Tensor, "b k d"]:
        if batch.candidates is None:
            raise UserError(
                "SurgCLIP's mil_nce needs candidate texts.", "method.options.candidates", "Use a store with texts."
            )
        pooled = self.encode_text(batch.candidates).pooled
        return self.text_projection.unscaled(pooled).unflatten(0, (len(batch.pixels), -1))  # type: ignore[operator]

    def _check_options(self) -> None:
        readings, candidates = int(self.config.options["readings"]), int(self.config.options["candidates"])
        wrong = None
        if readings not in (1, 3):
            wrong = "readings", f"is {readings}: a clip has 1 reading or 3."
        elif self.is_on("two_views") and readings == 1:
            wrong = "readings", "is 1, and two_views is between two augmented readings: set it to 3."
        elif self.is_on("mil_nce") != (candidates > 0):
            wrong = "candidates", f"is {candidates}: mil_nce needs candidates, and nothing else takes them."
        elif self.config.options["legacy_positives_twice"] and not self.is_on("mil_nce"):
            wrong = "legacy_positives_twice", "has no effect without mil_nce."
        if wrong is not None:
            key = f"method.options.{wrong[0]}"
            raise UserError(f"{key} {wrong[1]}", key, "See configs/pretrain/surgclip.yaml and surgvlp.yaml.")
