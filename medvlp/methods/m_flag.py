"""M-FLAG: images aligned with a frozen language model, and kept from collapse by orthogonality (MICCAI 2023).

Guarantee: the frozen text tower is in evaluation mode (the official code leaves its dropout on), and second moments of
the un-normalised features are taken in float32.
"""

from __future__ import annotations

from medvlp.config.methods import MethodConfig
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.objectives.redundancy import alignment, orthogonality
from medvlp.types import Batch


class MFLAG(Method):
    """arXiv 2307.08347: `4 - 4 cos` of both projections, and orthogonality of the image tower's raw output.

    The divisor of the second moments is the number of rows of the batch over all ranks, which the official code
    configures. `options.legacy_text_dropout` keeps the frozen tower in training mode, as the official code does.
    Zero-shot scores are cosines in the space of the alignment; their scale is ours, as the method has none.
    """

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.set_scale(self.config.options["zero_shot_temperature"], learnt=False)

    def train(self, mode: bool = True) -> MFLAG:
        """Switch to training mode; see `options.legacy_text_dropout`."""
        super().train(mode)
        if mode and self.config.options["legacy_text_dropout"] and self.text_encoder is not None:
            self.text_encoder.model.train()
        return self

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `alignment` and `orthogonality`."""
        text = self.encode_text(self.texts_of(batch))
        features = self.encode_stored(batch.pixels)
        terms = {
            "alignment": alignment(self.project_image(features), self.project_text(text)),
            "orthogonality": orthogonality(features.pooled, self.objective("orthogonality")["off_diagonal_weight"]),
        }
        return self.weighted(terms)
