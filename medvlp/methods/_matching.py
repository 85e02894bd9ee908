"""How a model whose fusion tells matches from mismatches answers prompts, and where it looks.

Guarantee: an answer does not depend on the images and prompts beside it, and is the same for our own training of a
method and for its released model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from medvlp.errors import UserError
from medvlp.methods.base import Encode
from medvlp.models.fusion import Fused, Fusion
from medvlp.objectives.matching import match_score
from medvlp.objectives.zero_shot import by_class
from medvlp.types import Features, TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Float

IMAGES_AT_ONCE = 64
"""Images fused together outside training."""


class MatchingAnswers:
    """Texts are scored by matching.

    Attributes:
        fusion: Of the tokens of both towers.
        matching_head: From the fused vector to the logits of "another image's text" and "this image's text".
    """

    fusion: Fusion
    matching_head: nn.Linear
    encode_image: Callable[..., Features]
    is_on: Callable[[str], bool]

    def fuse(self, image: Features, text: TextFeatures, weights: bool = False) -> Fused:
        """Return the fusion of images with texts, row by row."""
        return self.fusion(
            self.fusion.embed_image(image), self.fusion.embed_text(text.tokens), text.mask, None, None, weights
        )

    def match(self, fused: Fused) -> Float[torch.Tensor, "b 2"]:
        """Return the logits of matching."""
        return self.matching_head(self.fusion.pool(fused))

    def zero_shot(
        self,
        image: Features,
        positives: Sequence[Sequence[str]],
        negatives: Sequence[Sequence[str]],
        encode: Encode,
        reduce: Literal["max", "mean"] = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return the softmax of the matching scores of positive and negative prompts, see `Method.zero_shot`.

        Raises:
            UserError: Matching was not trained.
        """
        if not self.is_on("itm"):
            raise UserError(
                "The method was trained without matching, and scores texts by it.",
                "method.objectives.itm.weight",
                "Train with a weight above 0.",
            )
        groups = [prompts for pair in zip(positives, negatives, strict=True) for prompts in pair]
        texts = encode([prompt for prompts in groups for prompt in prompts])
        scores = torch.stack([self._match(image, texts, number) for number in range(len(texts.tokens))], dim=1)
        owner = torch.tensor([number for number, prompts in enumerate(groups) for _ in prompts], device=scores.device)
        return by_class(scores, owner, reduce).unflatten(1, (len(positives), 2)).softmax(2)[..., 0]

    def _match(self, image: Features, texts: TextFeatures, number: int) -> Float[torch.Tensor, " b"]:
        """Return how well each image matches one of the texts."""
        scores = []
        for first in range(0, len(image.tokens), IMAGES_AT_ONCE):
            some = slice(first, first + IMAGES_AT_ONCE)
            part = Features(image.tokens[some], image.pooled[some], image.grid)
            fused = self.fuse(part, _repeated(texts, number, len(part.tokens)))
            scores.append(match_score(self.match(fused)))
        return torch.cat(scores)

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c h w"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t g w"]:
        """Return what the words of each text attend to in the last layer, the mean over words and heads."""
        with torch.no_grad():
            image, encoded = self.encode_image(pixels), encode(texts)
            maps = []
            for number in range(len(texts)):
                text = _repeated(encoded, number, len(pixels))
                attention = self.fuse(image, text, weights=True).attention
                assert attention is not None
                words = (text.mask if text.word_ids is None else text.word_ids >= 0).to(attention.dtype)[:, None]
                attended = (words @ attention)[:, 0, 1:] / words.sum(2).clamp_min(1.0)
                maps.append(attended.unflatten(1, image.grid))
            return torch.stack(maps, dim=1)


def _repeated(texts: TextFeatures, number: int, rows: int) -> TextFeatures:
    """Return one text, without its pads, as often as there are images."""
    length = int(texts.mask[number].sum())
    words = None if texts.word_ids is None else texts.word_ids[number, :length].expand(rows, -1)
    return TextFeatures(
        texts.tokens[number, :length].expand(rows, -1, -1),
        texts.pooled[number].expand(rows, -1),
        texts.mask[number, :length].expand(rows, -1),
        words,
    )
