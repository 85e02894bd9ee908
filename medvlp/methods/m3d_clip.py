"""M3D-CLIP: contrast of CTs of the whole body with their reports (Bai et al., arXiv 2404.00578).

Guarantee: the contrast is that of all ranks; a report that is too long is read in other sentences every epoch, by
(seed, epoch, sample), and is never longer than the text tower reads.
"""

from __future__ import annotations

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.methods._pair_contrast import PairContrast
from medvlp.methods.base import Term
from medvlp.types import Batch


class M3DCLIP(PairContrast):
    """Scale exp(θ) from θ = ln(1/0.07), without bound.

    The official code multiplies cosines by θ = 2.66 itself: `scale.rule: multiply` does so, as its released weights
    need. Pairs that share a report (120,092 volumes have 42,496) are no negatives; `options.shared_texts: negatives` is
    the official way.
    """

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return Demands(sample_sentences=config.options["sample_sentences"])

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `info_nce`, of the augmented reading of the texts where there is one."""
        given = self.texts_of(batch)
        image = self.project_image(self.encode_stored(batch.pixels))
        text = self.project_text(self.encode_text(batch.text_augmented or given))
        return self.weighted({"info_nce": self.contrast(image, text, given)})
