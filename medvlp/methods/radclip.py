"""RadCLIP: a 2D CLIP on the slices of a volume, and attention among them (Lu et al., arXiv 2403.09948).

Guarantee: text tower and text projection stay as they are loaded; volumes that share a caption are never each other's
negatives, where in the official code false negatives are most of them.
"""

from __future__ import annotations

from medvlp.config.methods import MethodConfig
from medvlp.errors import UserError
from medvlp.methods._pair_contrast import PairContrast
from medvlp.methods.base import Term
from medvlp.methods.context import MethodContext
from medvlp.types import Batch


class RadCLIP(PairContrast):
    """Temperature 0.07, fixed. The image tower is of the family `slices`, or a 2D one for the paper's first stage.

    `options.freeze_text_projection` keeps the map of texts, as the paper does with CLIP's own. A frozen map needs the
    frozen tower that it belongs to (`text.freeze`).
    """

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        assert self.config.text is not None
        if self.config.options["freeze_text_projection"]:
            if not self.config.text.freeze:
                raise UserError(
                    "The map of texts is frozen, and the tower before it is not.",
                    "method.options.freeze_text_projection",
                    "Set method.text.freeze=true, or this to false.",
                )
            self.text_projection.requires_grad_(False)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `info_nce`."""
        given = self.texts_of(batch)
        image = self.project_image(self.encode_stored(batch.pixels))
        return self.weighted({"info_nce": self.contrast(image, self.project_text(self.encode_text(given)), given)})
