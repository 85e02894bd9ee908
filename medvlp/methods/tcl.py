"""TCL: ALBEF with contrast within each modality and of parts with wholes (Yang et al., CVPR 2022, arXiv 2202.10401).

Guarantee: as ALBEF; the teacher sees a second augmented reading of the images, drawn on its own.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from medvlp.config.methods import MethodConfig
from medvlp.config.towers import ImageTowerConfig
from medvlp.data.demands import Demands, View
from medvlp.errors import UserError
from medvlp.methods.albef import ALBEF
from medvlp.methods.base import Term
from medvlp.objectives.contrastive import queue_nce
from medvlp.objectives.momentum import local_nce, momentum_itc, window_means
from medvlp.types import Batch, Features, TextFeatures


class TCL(ALBEF):
    """Adds `intra` (image-image, text-text, hard targets) and `local` (a vector with its own patches or words).

    The paper takes the mean of six contrasts, two each of `itc`, `intra` and `local`: each of these three terms is a
    third of the mean of its two. Patches are averaged over windows of any grid, where the official code needs 16 x 16.
    """

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return replace(super().demands(config), views=(View(config.image_of(ImageTowerConfig, "TCL").input.size),))

    def _teacher_pixels(self, batch: Batch) -> torch.Tensor:
        if not batch.views:
            raise UserError("TCL needs a second view of each image.", "data", "Use batches made by its demands.")
        return batch.views[0]

    def _contrast(
        self, image: Features, words: TextFeatures, teacher_image: Features, teacher_words: TextFeatures
    ) -> dict[str, Term]:
        scale, image_vectors, text_vectors = self.logit_scale, self.project_image(image), self.project_text(words)
        image_keys, text_keys = self._keys(teacher_image, teacher_words)
        image_queue, text_queue = self.image_queue.features, self.text_queue.features
        itc = momentum_itc(
            image_vectors, text_vectors, image_keys, text_keys, image_queue, text_queue, scale, self.alpha
        )
        terms = {"itc": (itc[0] / 3, itc[1])}
        if self.is_on("intra"):
            within = queue_nce(image_vectors, image_keys, image_queue, scale)
            terms["intra"] = _sixth(within, queue_nce(text_vectors, text_keys, text_queue, scale))
        if self.is_on("local"):
            with torch.no_grad():
                patches = self.teacher["image_projection"](teacher_image.tokens)
                places = self.teacher["text_projection"](teacher_words.tokens[:, 1:])
            windows = window_means(patches, teacher_image.grid, self.objective("local")["window"] or None)
            of_image = local_nce(image_vectors, windows, scale)
            terms["local"] = _sixth(of_image, local_nce(text_vectors, places, scale, teacher_words.mask[:, 1:]))
        return terms


def _sixth(first: Term, second: Term) -> Term:
    """Return a sixth of the sum of two contrasts."""
    return (first[0] + second[0]) / 6, first[1] + second[1]
