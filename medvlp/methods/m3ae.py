"""M3AE: hidden words, hidden patches and matching, by a fusion of both towers (Chen et al., arXiv 2209.07098).

Guarantee: words are predicted beside the whole image, patches beside the whole text, from the layer that the paper
gives each; only what was hidden counts.
"""

from __future__ import annotations

from medvlp.config.methods import MethodConfig
from medvlp.methods._fused import FusedMethod
from medvlp.methods.base import Term
from medvlp.methods.context import MethodContext
from medvlp.types import Batch


class M3AE(FusedMethod):
    """CLIP ViT-B/16 of 11 blocks and RoBERTa, six co-attention layers; patches are decoded from before layer 3.

    Departures from the official code: the mismatches of ITM come from the batch (official: drawn from the data set),
    and an image whose own text is the same, token by token, is none.
    """

    parts = (*FusedMethod.parts, "decoder.")

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.decoder = self.build_decoder()

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `mlm`, `mim` and `itm`."""
        text, pixels = self.texts_of(batch), self.normalised(batch.pixels)
        image, states = self.fusion.embed_image(self.encode_image(pixels)), self.encode_tokens(text)
        terms = {}
        if self.is_on("mlm"):
            terms["mlm"] = self.mlm_term(image, text)
        if self.is_on("mim"):
            terms["mim"] = self.mim_term(self.decoder, pixels, states, text)
        if self.is_on("itm"):
            terms["itm"] = self.itm_term(image, states, text)
        return self.weighted(terms)
