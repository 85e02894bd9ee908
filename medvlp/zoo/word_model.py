"""GLoRIA's released model: image regions and words meet in the space of the text tower.

Guarantee: scores and heat maps follow the rules of the method as medvlp trains it; what an image and a text give does
not depend on the images and texts beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from medvlp.methods.base import Encode
from medvlp.methods.gloria import GLoRIA
from medvlp.models.words import to_words
from medvlp.objectives.token_max import mean_cosines
from medvlp.objectives.word_region import prompt_similarity
from medvlp.objectives.zero_shot import by_group
from medvlp.types import Features
from medvlp.zoo.released import ReleasedModel

if TYPE_CHECKING:
    from jaxtyping import Float


class WordModel(ReleasedModel):
    """A text is scored by its vector and by its best word.

    Options of the format: `sharpness` and `match_scale`, see `medvlp.objectives.word_region`.
    """

    @property
    def heat_map_kind(self) -> str | None:
        """How `heat_map` finds evidence."""
        return GLoRIA.heat_map_kind if self.shared_space else None

    def zero_shot(
        self,
        image: Features,
        positives: Sequence[Sequence[str]],
        negatives: Sequence[Sequence[str]],
        encode: Encode,
        reduce: Literal["max", "mean"] = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return the probability of each question; see `GLoRIA`."""
        groups = [prompts for pair in zip(positives, negatives, strict=True) for prompts in pair]
        text = encode([prompt for group in groups for prompt in group])
        words, options = to_words(text), self.release.options
        similarity = prompt_similarity(
            self.project_image(image),
            self.head("image_tokens")(image.tokens),
            self.project_text(text),
            words.tokens,
            words.mask,
            options["sharpness"],
            options["match_scale"],
        )
        scores = self.logit_scale * by_group(similarity, [len(group) for group in groups], reduce)
        return scores.unflatten(1, (len(positives), 2)).softmax(2)[..., 0]

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c h w"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t g w"]:
        """Return the mean cosine of each region with the words of each text."""
        features, words = self.encode_image(pixels), to_words(encode(texts))
        regions = self.head("image_tokens")(features.tokens)
        return mean_cosines(regions, words.tokens, words.mask).unflatten(2, features.grid)
