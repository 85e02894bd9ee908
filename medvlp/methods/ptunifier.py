"""PTUnifier: soft prompts stand for a missing image or text, so that one fusion serves all inputs (arXiv 2302.08958).

Guarantee: contrast and pools train by default, which they do not in the released code; the vector of an image is the
same whether texts are at hand or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.errors import UserError
from medvlp.methods._fused import FusedMethod
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.projection import Projection
from medvlp.models.prompt_pool import PromptPool, mean_of_text
from medvlp.models.vit import require_class_token
from medvlp.objectives.contrastive import info_nce
from medvlp.types import Batch, Features, TextBatch, TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Float


class PTUnifier(FusedMethod):
    """M3AE's fusion with two prompt pools; scores texts by the contrast of image alone and text alone.

    As released the contrast never runs (its name is tested wrongly) and the pools are looked up without gradient:
    `options.legacy_no_itc` and `options.legacy_frozen_pools` restore that. A missing image is the class token and the
    49 rows nearest to the mean embedding of the text, a missing text is the 32 rows nearest to the mean embedding of
    the patches between the class and the separator token.
    """

    shared_space = True
    parts = (*FusedMethod.parts, "image_projection.", "text_projection.")

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        assert self.text_encoder is not None
        require_class_token(self.image_encoder.backbone, "A prompt for a missing image")
        if self.image_encoder.dim != self.text_encoder.dim:
            raise UserError(
                f"PTUnifier looks up prompts of one tower by the embeddings of the other, and their widths differ: "
                f"{self.image_encoder.dim} and {self.text_encoder.dim}.",
                "method.image.name, method.text.hidden",
                "Choose towers of one width.",
            )
        self.image_encoder.keep_embedding = True
        options = self.config.options
        pools, frozen = options["pools"], options["legacy_frozen_pools"] or not self.is_on("itc")
        self.image_pool = PromptPool(pools["images"], self.image_encoder.dim, pools["of_image"], frozen)
        self.text_pool = PromptPool(pools["texts"], self.text_encoder.dim, pools["of_text"], frozen)
        width = 2 * self.sizes.dim
        self.image_projection = nn.Sequential(nn.LayerNorm(width), Projection(width, config.projection))
        self.text_projection = nn.Sequential(nn.LayerNorm(width), Projection(width, config.projection))
        if not self.is_on("itc"):
            self.image_projection.requires_grad_(False)
            self.text_projection.requires_grad_(False)
        self.set_scale(self.positive("itc", "temperature"), learnt=False)

    zero_shot = Method.zero_shot
    """By the contrast; the head of matching has seen no prompts in place of the other side."""

    def is_on(self, name: str) -> bool:
        """Return whether a term has a weight; as released, the contrast never runs."""
        return super().is_on(name) and not (name == "itc" and self.config.options["legacy_no_itc"])

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `mlm`, `itm` and `itc`."""
        text, features = self.texts_of(batch), self.encode_stored(batch.pixels)
        image = self.fusion.embed_image(features)
        terms = {}
        if self.is_on("mlm"):
            terms["mlm"] = self.mlm_term(image, text)
        if self.is_on("itm"):
            terms["itm"] = self.itm_term(image, self.encode_tokens(text), text)
        if self.is_on("itc"):
            image_vectors, text_vectors = self.project_image(features), self.project_text(self.encode_text(text))
            terms["itc"] = info_nce(image_vectors, text_vectors, self.logit_scale)
        return self.weighted(terms)

    def encode_text(self, text: TextBatch) -> TextFeatures:
        """Return the text tower's tokens; `pooled` is the fusion of the text with prompts for the image."""
        assert self.text_encoder is not None
        embedded = self.text_encoder.embed(text.ids)
        tokens = self.text_encoder.encode_embedded(embedded, text.mask)
        query = mean_of_text(embedded, text.mask)
        class_token = self.image_encoder.class_embedding()
        prompts = torch.cat([class_token.expand(len(query), -1, -1), self.image_pool(query)], dim=1)
        image = self.fusion.embed_image(self.image_encoder.encode_embedded(prompts))
        fused = self.fusion(image, self.fusion.embed_text(tokens), text.mask)
        return TextFeatures(tokens, self.fusion.pool(fused), text.mask, text.word_ids)

    def project_image(self, features: Features) -> Float[torch.Tensor, "b d"]:
        """Return unit vectors of images alone, prompts in place of the text.

        Raises:
            UserError: The contrast was not trained.
        """
        self._check_contrast()
        assert self.text_encoder is not None
        assert features.embedding is not None
        ends = self.text_encoder.embed(self._ends(features.pooled.device))
        rows = self.text_pool(features.embedding)
        first, last = (end.expand(len(rows), -1, -1) for end in ends)
        prompts = torch.cat([first, rows, last], dim=1)
        mask = torch.ones(prompts.shape[:2], dtype=torch.bool, device=prompts.device)
        text = self.fusion.embed_text(self.text_encoder.encode_embedded(prompts, mask))
        fused = self.fusion(self.fusion.embed_image(features), text, mask)
        return self.image_projection(self.fusion.pool(fused))

    def project_text(self, features: TextFeatures) -> Float[torch.Tensor, "b d"]:
        """Return unit vectors of texts alone.

        Raises:
            UserError: The contrast was not trained.
        """
        self._check_contrast()
        return self.text_projection(features.pooled)

    def _ends(self, device: torch.device) -> torch.Tensor:
        """Return the class and the separator token as two texts of one token, `[2 1]`: both stand at place 0."""
        return self.context.tokenise([""], max_tokens=8).ids.T.to(device)

    def _check_contrast(self) -> None:
        if not self.is_on("itc"):
            raise UserError(
                "PTUnifier was trained without contrast, and its vectors of images and texts do not compare.",
                "method.objectives.itc.weight",
                "Train with a weight above 0, and legacy_no_itc=false.",
            )
