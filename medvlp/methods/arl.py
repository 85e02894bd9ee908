"""ARL: align, reason and learn with the entities of a knowledge graph (Chen et al., ACM MM 2022, arXiv 2209.07118).

Guarantee: the graph network runs once a step; entities of hidden tokens never reach the pass that predicts them; a text
without entities, and a method without a graph, work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods._fused import FusedMethod, hidden_share
from medvlp.methods.base import Term
from medvlp.methods.context import MethodContext
from medvlp.models.fusion import Entities, Fusion, FusionSizes, places_of
from medvlp.models.graph_attention import ConceptGraph
from medvlp.models.language_head import start_as_bert
from medvlp.objectives.entities import entity_bce, named
from medvlp.types import Batch, TextBatch

if TYPE_CHECKING:
    from jaxtyping import Float


class ARL(FusedMethod):
    """M3AE with an entity stream in the text's layers, and alignment of both towers with the entities.

    `options.knowledge: false`, with `align` off, is the method without entities. Departures from the official code: the
    graph network runs once a step (official: once each time, with other dropout); links count in both directions;
    mismatches come from the batch, see `M3AE`. An image's labels are the entities of its text. Prompts have no
    entities.
    """

    parts = (*FusedMethod.parts, "decoder.", "graph.", "image_align.", "text_align.")

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.decoder = self.build_decoder()
        self.graph = self._build_graph(context) if self.config.options["knowledge"] else None
        if self.graph is not None:
            dim, width = self.config.options["entities"]["dim"], self.sizes.dim
            self.image_align, self.text_align = _entity_head(width, dim), _entity_head(width, dim)
        elif self.is_on("align"):
            raise UserError(
                "Without knowledge there are no entities to align with.",
                "method.objectives.align.weight",
                "Set it to 0, or method.options.knowledge=true.",
            )

    def build_fusion(self) -> Fusion:
        """Return the fusion with its entity stream."""
        assert self.text_encoder is not None
        entities = None
        if self.config.options["knowledge"]:
            given: Mapping[str, Any] = self.config.options["entities"]
            same = {name: self.config.options["fusion"][name] for name in ("layers", "dropout", "norm_eps")}
            entities = FusionSizes.of({**given, **same}, "entities")
        return Fusion(self.image_encoder.dim, self.text_encoder.dim, self.sizes, entities)

    def _build_graph(self, context: MethodContext) -> ConceptGraph:
        if context.concepts is None:
            raise UserError(
                "ARL needs the concepts of the texts.",
                "data.knowledge",
                "Give a bank, or method.options.knowledge=false.",
            )
        return ConceptGraph(context.concepts, self.config.options["entities"]["dim"], **self.config.options["graph"])

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        knows, share = config.options["knowledge"], hidden_share(config)
        return Demands(
            text_unit=config.options["text_unit"],
            concepts=knows,
            hidden_share=share,
            hide_concepts=knows and share > 0,
        )

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `mlm`, `mim`, `itm` and `align`."""
        text, pixels = self.texts_of(batch), self.normalised(batch.pixels)
        image, states = self.fusion.embed_image(self.encode_image(pixels)), self.encode_tokens(text)
        nodes = None if self.graph is None else self.graph()
        terms = {}
        if self.is_on("mlm"):
            terms["mlm"] = self.mlm_term(image, text, self._entities(nodes, text, shown_only=True))
        entities = self._entities(nodes, text)
        if self.is_on("mim"):
            terms["mim"] = self.mim_term(self.decoder, pixels, states, text, entities)
        if self.is_on("itm"):
            terms["itm"] = self.itm_term(image, states, text, entities)
        if self.is_on("align") and nodes is not None:
            terms["align"] = self._align_term(image[:, 0], states[:, 0], nodes, text)
        return self.weighted(terms)

    def _align_term(self, image: torch.Tensor, states: torch.Tensor, nodes: torch.Tensor, text: TextBatch) -> Term:
        assert text.concepts is not None
        labels = named(text.concepts, len(nodes))
        image_value, image_count = entity_bce(self.image_align(image), nodes, labels)
        text_value, text_count = entity_bce(self.text_align(states), nodes, labels)
        return image_value + text_value, image_count + text_count

    def _entities(
        self, nodes: Float[torch.Tensor, "n e"] | None, text: TextBatch, shown_only: bool = False
    ) -> Entities | None:
        """Return the entities of the texts, the first `most` of each; `shown_only` leaves out those with hidden tokens.

        Raises:
            UserError: The batch does not say which there are.
        """
        if nodes is None:
            return None
        if text.concepts is None or text.spans is None:
            raise UserError("ARL needs the concepts of every text.", "data.knowledge", "Demand concepts of the loader.")
        most = self.config.options["most_entities"]
        concepts, spans = _at_least_one(text.concepts[:, :most], -1), _at_least_one(text.spans[:, :most], -1)
        places = places_of(spans, text.ids.shape[1])
        known = (concepts >= 0) & places.any(2)
        if shown_only and text.hidden is not None:
            known = known & ~(places.bool() & text.hidden[:, None]).any(2)
        return Entities(nodes[concepts.clamp_min(0)], known, places * known[..., None])


def _entity_head(width: int, dim: int) -> nn.Sequential:
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim), nn.ReLU())
    start_as_bert(head, width)
    return head


def _at_least_one(tensor: torch.Tensor, empty: int) -> torch.Tensor:
    """Return a tensor `[b s ...]` with one empty column where there is none."""
    return tensor if tensor.shape[1] else tensor.new_full((len(tensor), 1, *tensor.shape[2:]), empty)
