"""MeDSLIP: a finding and an anatomy stream of one radiograph, each read by a query decoder (arXiv 2403.10635).

Guarantee: existence, prototype contrast (ProtoCL) and intersection (ICL) as in the official code, value and gradient,
with masked tensor products in place of its loops; a batch without labelled cells gives 0, not NaN.

Departures from the official code: the two decoders have norms of their own (`legacy_shared_norm`), the books are part
of the model, an image is not flipped (it would contradict left and right), and a prompt may name a side.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from medvlp.config.methods import MethodConfig
from medvlp.methods._choices import chosen
from medvlp.methods._queries import PlaceMethod
from medvlp.methods.base import Term
from medvlp.methods.context import MethodContext
from medvlp.models.streams import StreamGate, StreamOutput, start_linear
from medvlp.objectives.triplets import (
    anatomy_labels,
    draw_others,
    existence_ce,
    finding_labels,
    intersection_bce,
    prototype_contrast,
)
from medvlp.types import Batch, Features


class MeDSLIP(PlaceMethod):
    """Gate, two streams, and one linear map that makes queries of both books."""

    trailing: ClassVar[bool] = True

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        options = self.config.options
        self.gate = StreamGate(
            self.image_encoder.token_dim, chosen(self.config, "gate_activation", ("none", "sigmoid"))
        )
        self.finding_stream, self.anatomy_stream = self.stream_of(), self.stream_of()
        if options["legacy_shared_norm"]:
            self.anatomy_stream.decoder.norm = self.finding_stream.decoder.norm
        for part in (self.query, self.gate):
            start_linear(part, options["linear_deviation"])

    def findings(self, image: Features, queries: torch.Tensor, attention: bool = False) -> StreamOutput:
        """Return what the finding stream says of each query."""
        return self.finding_stream(self.gate(image.tokens)[0], queries, attention, image.grid)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `exist`, `protocl` and `icl`; the first two are sums over both streams."""
        matrix = self.matrix_of(batch)
        image = self.encode_stored(batch.pixels)
        of_finding, of_anatomy = self.gate(image.tokens)
        finding_book, anatomy_book = self.finding_embeddings(), self.anatomy_embeddings()
        finding = self.finding_stream(of_finding, self.query(finding_book), grid=image.grid)
        anatomy = self.anatomy_stream(of_anatomy, self.query(anatomy_book), grid=image.grid)
        number = self.objective("protocl")["negatives"]
        at_place = matrix == 1
        of_place = at_place.transpose(1, 2)
        exist = [
            existence_ce(finding.logits, finding_labels(matrix)),
            existence_ce(anatomy.logits, anatomy_labels(matrix)),
        ]
        protocl = [
            prototype_contrast(finding.projected, anatomy_book.detach(), of_place, draw_others(of_place, number)),
            prototype_contrast(anatomy.projected, finding_book.detach(), at_place, draw_others(at_place, number)),
        ]
        icl = intersection_bce(anatomy.features, finding.features, matrix)
        return self.weighted({"exist": _sum(exist), "protocl": _sum(protocl), "icl": icl})


def _sum(terms: list[Term]) -> Term:
    values, counts = zip(*terms, strict=True)
    return torch.stack(values).sum(), torch.stack(counts).sum()
