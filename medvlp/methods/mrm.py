"""MRM: hidden patches of a larger image and hidden words of its report, from one image tower (Zhou et al., ICLR 2023).

Guarantee: the image tower sees visible patches alone; only hidden patches and, by default, hidden words count.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from timm.layers import build_sincos2d_pos_embed
from torch import nn
from torch.nn import functional

from medvlp.config.methods import MethodConfig
from medvlp.config.towers import ImageTowerConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods._fused import hidden_share
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.language_head import LanguageHead, hide_tokens
from medvlp.models.masked_decoder import DecoderSizes, PixelDecoder, draw_kept
from medvlp.models.vit import require_class_token
from medvlp.objectives.masked import mim, mlm
from medvlp.types import Batch, TextBatch

if TYPE_CHECKING:
    from jaxtyping import Float

SCALE = 2
"""Side of the image that is predicted over that of the image that is seen."""


class MRM(Method):
    """Masked record modelling (arXiv 2301.13155): MAE with two decoders, one of pixels, one of words.

    The mean state of the visible patches, linearly mapped, is added to every word's embedding. It is also what a probe
    gets, of all patches. Scores no texts. `options.legacy_all_tokens`: all tokens count, hidden or not, pads too, as in
    the official code. Departure: the image that is seen is the mean of 2 x 2 pixels (official: bicubic), as a stored
    image is made smaller elsewhere.
    """

    shared_space = False
    scores_text = False
    heat_map_kind = None

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        assert self.text_encoder is not None
        backbone = self.image_encoder.backbone
        _, positions = require_class_token(backbone, "Masked record modelling")
        embed, dim = backbone.patch_embed, self.image_encoder.dim
        self.patch = SCALE * embed.patch_size[0]
        sizes = DecoderSizes.of(self.config.options["decoder"], "decoder")
        self.decoder = PixelDecoder(dim, embed.grid_size, self.patch**2 * self.config.image.input.channels, sizes)
        self.to_words = nn.Linear(dim, self.text_encoder.dim)
        self.language_head = LanguageHead(self.text_encoder.dim, context.vocab_size)
        positions.requires_grad_(False)
        if self.config.image.weights is None:
            places = build_sincos2d_pos_embed(list(embed.grid_size), dim)
            positions.data.copy_(torch.cat([torch.zeros(1, dim), places]))

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        config.image_of(ImageTowerConfig, "MRM predicts an image of twice the size, and")
        return Demands(text_unit=config.options["text_unit"], hidden_share=hidden_share(config), image_scale=SCALE)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `mim` and `mlm`."""
        text, large = self.texts_of(batch), self.normalised(batch.pixels)
        side = SCALE * self.config.image.input.size
        if large.shape[2:] != (side, side):
            raise UserError(
                f"MRM needs images of {side} x {side} pixels, not {large.shape[2]} x {large.shape[3]}.",
                "pixels",
                f"Demand an image_scale of {SCALE}.",
            )
        settings = self.objective("mim")
        keep, hidden = draw_kept(len(large), len(self.decoder.positions), settings["hidden_share"], large.device)
        states = self.image_encoder.visible_states(functional.avg_pool2d(large, SCALE), keep)
        terms = {}
        if self.is_on("mim"):
            terms["mim"] = mim(self.decoder(states, keep), large, hidden, self.patch, settings["normalise"])
        if self.is_on("mlm"):
            terms["mlm"] = self._words(states[:, 1:].mean(1), text)
        return self.weighted(terms)

    def _words(self, image: Float[torch.Tensor, "b d"], text: TextBatch) -> Term:
        """Return the loss of the words, beside the mean state of the visible patches."""
        if text.hidden is None:
            raise UserError("MLM needs to know which tokens are hidden.", "text.hidden", "Demand a hidden_share.")
        assert self.text_encoder is not None
        mask_id, vocab_size = self.context.mask_id, self.context.vocab_size
        seen = replace(text, ids=hide_tokens(text.ids, text.hidden, mask_id, vocab_size, 1.0, 0.0))
        embedded = self.text_encoder.embed(seen.ids) + self.to_words(image)[:, None]
        tokens = self.text_encoder.encode_embedded(embedded, text.mask)
        asked = torch.ones_like(text.hidden) if self.config.options["legacy_all_tokens"] else text.hidden
        return mlm(self.language_head(tokens[asked]), text.ids[asked])
