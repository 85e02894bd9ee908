"""DeViDe, a stand-in: one radiograph tied to several descriptions of its findings (arXiv 2404.03618).

Guarantee: the four terms that the paper names, over the 75 entries of the finding book. Not the paper's formulas: those
of its text and patch terms, their weights and the temperature are not public, nor is code; what stands here is ours.

- `itc`: InfoNCE of image and report.
- `tnc`: InfoNCE of an image against all entities, the present ones positive.
- `pta`: InfoNCE of the patches that a present entity attends to; see `entity_patch_nce`.
- `bce`: a query decoder says of each entity whether it is there, on entities affirmed or denied.

In training an entity is told by its definition or by one of its appearances, drawn anew at every step; afterwards by
the mean of all. Entities have no places: a prompt that names a side is answered as if it did not.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.knowledge.books import finding_book
from medvlp.methods._queries import QueryMethod
from medvlp.methods.base import Term
from medvlp.methods.context import MethodContext
from medvlp.models.projection import Projection
from medvlp.models.query_decoder import QueryDecoder
from medvlp.models.streams import StreamOutput, start_linear
from medvlp.objectives.contrastive import info_nce, multi_positive_nce
from medvlp.objectives.entity_alignment import entity_patch_nce
from medvlp.objectives.triplets import existence_bce, finding_labels
from medvlp.types import Batch, Features

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class DeViDe(QueryMethod):
    """Shared space of images, reports and entities, and a query decoder over the entities."""

    shared_space = True

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.set_scale(self.positive("itc", "temperature"), learnt=False)
        decoder = self.config.options["decoder"]
        self.patch_projection = Projection(self.image_encoder.token_dim, self.config.projection)
        self.tokens = nn.Sequential(
            nn.Linear(self.image_encoder.token_dim, decoder["width"]), nn.LayerNorm(decoder["width"])
        )
        self.decoder = QueryDecoder(**decoder)
        self.classifier = nn.Linear(decoder["width"], 1)
        for part in (self.query, self.tokens, self.decoder, self.classifier):
            start_linear(part, self.config.options["linear_deviation"])
        numbers = [len(texts) for texts in self.finding_texts()]
        owners = [entity for entity, number in enumerate(numbers) for _ in range(number)]
        self.register_buffer("owner", torch.tensor(owners), False)
        self.register_buffer("first", torch.tensor([0, *accumulate(numbers)][:-1]), False)
        self.register_buffer("number", torch.tensor(numbers), False)

    owner: torch.Tensor
    first: torch.Tensor
    number: torch.Tensor

    @classmethod
    def finding_texts(cls) -> Sequence[Sequence[str]]:
        """Return the definition and the appearances of each finding."""
        return [[note.definition, *note.appearance] for note in finding_book()]

    def draw_texts(self) -> Int[torch.Tensor, " 75"]:
        """Draw one text of each entity: its row among all texts."""
        return self.first + (torch.rand(len(self.number), device=self.number.device) * self.number).long()

    def finding_embeddings(self) -> Float[torch.Tensor, "75 e"]:
        """Return the embedding of a drawn text of each entity in training, else the mean over its texts."""
        assert self.text_encoder is not None
        if self.training:
            return self.finding_book(self.text_encoder, self.draw_texts())
        texts = self.finding_book(self.text_encoder)
        sums = texts.new_zeros(len(self.number), texts.shape[1]).index_add(0, self.owner, texts)
        return sums / self.number[:, None]

    def findings(self, image: Features, queries: torch.Tensor, attention: bool = False) -> StreamOutput:
        """Return what the decoder says of each query; the logit of "absent" is 0."""
        decoded = self.decoder(queries.expand(len(image.tokens), -1, -1), self.tokens(image.tokens), attention)
        present = self.classifier(decoded.features)
        logits = torch.cat([torch.zeros_like(present), present], dim=2)
        return StreamOutput(decoded.features, decoded.heads, logits=logits, projected=decoded.features)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `itc`, `tnc`, `pta` and `bce`."""
        text, labels = self.texts_of(batch), finding_labels(self.matrix_of(batch))
        image = self.encode_stored(batch.pixels)
        vectors, embeddings = self.project_image(image), self.finding_embeddings()
        entities, present = self.text_projection(embeddings), labels == 1
        pta = self.objective("pta")
        output = self.findings(image, self.query(embeddings))
        patches = self.patch_projection(image.tokens)
        return self.weighted(
            {
                "itc": info_nce(vectors, self.project_text(self.encode_text(text)), self.logit_scale),
                "tnc": multi_positive_nce(vectors, entities, present, self._scale("tnc")),
                "pta": entity_patch_nce(patches, entities, present, self._scale("pta"), pta["sharpness"]),
                "bce": existence_bce(output.logits[..., 1], labels),
            }
        )

    def _scale(self, name: str) -> torch.Tensor:
        return torch.as_tensor(1 / self.positive(name, "temperature"), device=self.log_scale.device)
