"""What M3AE, ARL and PTUnifier share: two towers, their fusion, hidden tokens and patches, and matching.

Guarantee: each term has the passes that its paper gives it; what two passes have in common (the whole image of MLM and
ITM, the whole text of MIM and ITM) is encoded once, which changes no expected value.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods._matching import MatchingAnswers
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.fusion import Entities, Fusion, FusionSizes
from medvlp.models.language_head import LanguageHead, hide_tokens, start_as_bert
from medvlp.models.masked_decoder import DecoderSizes, PixelDecoder, draw_kept
from medvlp.models.vit import require_vit
from medvlp.objectives.masked import mim, mlm
from medvlp.objectives.matching import itm, replacements, same_texts
from medvlp.types import TextBatch

if TYPE_CHECKING:
    from jaxtyping import Float


class FusedMethod(MatchingAnswers, Method):
    """Base of methods with co-attention (METER, arXiv 2111.02387).

    Options: `text_unit` (report or sentence), `hidden_share` (share that MLM hides), `lr_factor` (of fusion and heads
    over the towers), `fusion` (see `FusionSizes`).
    """

    shared_space = False
    heat_map_kind = "cross-attention"
    parts: tuple[str, ...] = ("fusion.", "language_head.", "matching_head.")
    """Beginnings of the names of parameters that learn `lr_factor` times as fast."""

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        assert self.text_encoder is not None
        tower = self.image_encoder
        if tower.token_dim != tower.dim:
            raise UserError(
                "The fusion takes the pooled vector as one of the tokens, and they differ in width.",
                "method.image.tap",
                "Leave tap out, or set truncate.",
            )
        self.sizes = FusionSizes.of(self.config.options["fusion"], "fusion")
        self.fusion = self.build_fusion()
        self.language_head = LanguageHead(self.sizes.dim, context.vocab_size, eps=self.sizes.norm_eps)
        self.matching_head = nn.Linear(2 * self.sizes.dim, 2)
        start_as_bert(self.matching_head, self.sizes.dim)

    def build_fusion(self) -> Fusion:
        """Return the fusion; a subclass adds to it."""
        assert self.text_encoder is not None
        return Fusion(self.image_encoder.dim, self.text_encoder.dim, self.sizes)

    def build_decoder(self) -> PixelDecoder:
        """Return the decoder of hidden patches.

        Raises:
            UserError: The image tower is no plain ViT.
        """
        embed = require_vit(self.image_encoder.backbone, "Masked image modelling").patch_embed
        values = math.prod(embed.patch_size) * self.config.image.input.channels
        sizes = DecoderSizes.of(self.config.options["decoder"], "decoder")
        return PixelDecoder(self.sizes.dim, embed.grid_size, values, sizes)

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return Demands(text_unit=config.options["text_unit"], hidden_share=hidden_share(config))

    def learning_rate_factors(self) -> dict[str, float]:
        """Return the factor of fusion and heads."""
        return dict.fromkeys(self.parts, float(self.config.options["lr_factor"]))

    # Passes.

    def encode_tokens(self, text: TextBatch) -> Float[torch.Tensor, "b l d"]:
        """Return the states of a text as the fusion takes them."""
        assert self.text_encoder is not None
        return self.fusion.embed_text(self.text_encoder(text).tokens)

    def masked_text(self, text: TextBatch) -> TextBatch:
        """Return the text as it is seen with hidden tokens.

        Raises:
            UserError: The batch does not say which are hidden.
        """
        if text.hidden is None:
            raise UserError("MLM needs to know which tokens are hidden.", "text.hidden", "Demand a hidden_share.")
        ids = hide_tokens(text.ids, text.hidden, self.context.mask_id, self.context.vocab_size)
        return replace(text, ids=ids)

    def mlm_term(self, image: Float[torch.Tensor, "b p d"], text: TextBatch, entities: Entities | None = None) -> Term:
        """Return the loss of hidden tokens, beside the whole image."""
        fused = self.fusion(image, self.encode_tokens(self.masked_text(text)), text.mask, entities)
        assert text.hidden is not None
        return mlm(self.language_head(fused.text[text.hidden]), text.ids[text.hidden])

    def mim_term(
        self,
        decoder: PixelDecoder,
        pixels: Float[torch.Tensor, "b c *s"],
        states: Float[torch.Tensor, "b l d"],
        text: TextBatch,
        entities: Entities | None = None,
    ) -> Term:
        """Return the loss of hidden patches, beside the whole text."""
        settings = self.objective("mim")
        patches = len(decoder.positions)
        keep, hidden = draw_kept(len(pixels), patches, settings["hidden_share"], pixels.device)
        visible = self.fusion.embed_image(self.image_encoder.encode_visible(pixels, keep))
        fused = self.fusion(visible, states, text.mask, entities, layers=settings["layer"])
        patch = require_vit(self.image_encoder.backbone, "Masked image modelling").patch_embed.patch_size
        return mim(decoder(fused.image, keep), pixels, hidden, patch, settings["normalise"])

    def itm_term(
        self,
        image: Float[torch.Tensor, "b p d"],
        states: Float[torch.Tensor, "b l d"],
        text: TextBatch,
        entities: Entities | None = None,
    ) -> Term:
        """Return the loss of matching, half of the images replaced by others of the batch."""
        index, matched = replacements(same_texts(text.ids, text.mask))
        fused = self.fusion(image[index], states, text.mask, entities)
        return itm(self.match(fused), matched)


def hidden_share(config: MethodConfig) -> float:
    """Return the share of the tokens that MLM hides, 0 where it is off."""
    return float(config.options["hidden_share"]) if config.objectives["mlm"]["weight"] else 0.0
