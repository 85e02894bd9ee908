"""MedKLIP: descriptions of findings as queries of a radiograph, their places as contrast (arXiv 2301.02228).

Guarantee: existence and position loss as in the official code, value and gradient, with masked tensor products in place
of its loops; a batch without labelled cells gives 0, not NaN.

Departures from the official code: the books are part of the model, an image is not flipped (it would contradict left
and right), and a prompt may name a side.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from medvlp.config.methods import MethodConfig
from medvlp.methods._queries import PlaceMethod
from medvlp.methods.base import Term
from medvlp.methods.context import MethodContext
from medvlp.models.streams import StreamOutput, start_linear
from medvlp.objectives.triplets import draw_one, draw_others, existence_ce, finding_labels, position_contrast
from medvlp.types import Batch, Features


class MedKLIP(PlaceMethod):
    """One stream, whose queries are the findings."""

    trailing: ClassVar[bool] = False

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.stream = self.stream_of()
        start_linear(self.query, self.config.options["linear_deviation"])

    def findings(self, image: Features, queries: torch.Tensor, attention: bool = False) -> StreamOutput:
        """Return what the stream says of each query."""
        return self.stream(image.tokens, queries, attention, image.grid)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `exist` and `position`."""
        matrix = self.matrix_of(batch)
        output = self.findings(self.encode_stored(batch.pixels), self.query(self.finding_embeddings()))
        with torch.no_grad():
            places = self.anatomy_embeddings()
        present = (matrix == 1).transpose(1, 2)
        others = draw_others(present, self.objective("position")["negatives"])
        return self.weighted(
            {
                "exist": existence_ce(output.logits, finding_labels(matrix)),
                "position": position_contrast(output.projected, places, draw_one(present), others),
            }
        )
