"""FILIP: each patch matched with its best word and each word with its best patch (Yao et al., arXiv 2111.07783).

Guarantee: pads are neither matched nor matched with (the official code masks nothing), and negatives are those of all
ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods._choices import TEXT_UNITS, chosen
from medvlp.methods.base import Encode, Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.projection import Projection
from medvlp.objectives.pairs import pairwise
from medvlp.objectives.token_max import mean_cosines, mean_of_best, token_max_nce
from medvlp.objectives.zero_shot import by_group
from medvlp.types import Batch, Features

if TYPE_CHECKING:
    from jaxtyping import Float

MAX_LOG_SCALE = math.log(100.0)


class FILIP(Method):
    """Objective `token_max` with a learnt scale; images and texts have no single vector.

    `top_k` keeps those tokens of a sample as keys that suit its own partner best, as the official code (DeCLIP) does; 0
    keeps all. `options.legacy_pads` treats pads as tokens. The score of a prompt is the mean of both directions.
    """

    shared_space = False
    heat_map_kind = "patch-text similarity"

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        assert self.text_encoder is not None
        top_k = self.objective("token_max")["top_k"]
        if top_k < 0:
            key = "method.objectives.token_max.top_k"
            raise UserError(f"{key} is {top_k}.", key, "Give a number of tokens, or 0 for all.")
        self.set_scale(self.positive("token_max", "temperature"), learnt=True)
        self.image_projection = Projection(self.image_encoder.token_dim, self.config.projection)
        self.text_projection = Projection(self.text_encoder.dim, self.config.projection)

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return Demands(text_unit=chosen(config, "text_unit", TEXT_UNITS))

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines, learnt, at most 100."""
        return self.scale_within(0.0, MAX_LOG_SCALE)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `token_max`."""
        text = self.encode_text(self.texts_of(batch))
        patches = self.image_projection(self.encode_stored(batch.pixels).tokens)
        mask = torch.ones_like(text.mask) if self.config.options["legacy_pads"] else text.mask
        term = token_max_nce(
            patches, self.text_projection(text.tokens), mask, self.logit_scale, self.objective("token_max")["top_k"]
        )
        return self.weighted({"token_max": term})

    def zero_shot(
        self,
        image: Features,
        positives: Sequence[Sequence[str]],
        negatives: Sequence[Sequence[str]],
        encode: Encode,
        reduce: Literal["max", "mean"] = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return a two-class softmax of the token-wise similarity to both sides of each question."""
        groups = [prompts for pair in zip(positives, negatives, strict=True) for prompts in pair]
        text = encode([prompt for group in groups for prompt in group])
        words, patches = self.text_projection(text.tokens), self.image_projection(image.tokens)
        everywhere = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        of_images = pairwise(mean_of_best, (patches, everywhere), (words, text.mask))
        of_texts = pairwise(mean_of_best, (words, text.mask), (patches, everywhere)).T
        similarity = (of_images + of_texts) / 2
        logits = self.logit_scale.float() * by_group(similarity, [len(group) for group in groups], reduce)
        return logits.unflatten(1, (len(positives), 2)).softmax(2)[..., 0]

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c h w"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t g w"]:
        """Return the mean cosine of each patch with the words of each text; [CLS] and [SEP] are no words."""
        features, text = self.encode_image(pixels), encode(texts)
        assert text.word_ids is not None
        inside = text.mask & (text.word_ids >= 0)
        maps = mean_cosines(self.image_projection(features.tokens), self.text_projection(text.tokens), inside)
        return maps.unflatten(2, features.grid)
