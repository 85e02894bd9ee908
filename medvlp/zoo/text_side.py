"""The text side of an encoder: what its texts go through, and how questions are put to it.

Guarantee: texts are tokenised as in training; a question without a prompt, or without its opposite, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from medvlp.errors import UserError
from medvlp.objectives.zero_shot import opposite
from medvlp.types import TextBatch, TextFeatures

if TYPE_CHECKING:
    from medvlp.methods.base import Method
    from medvlp.text.tokenizer import Tokenizer
    from medvlp.zoo.released import ReleasedModel

Prompts = str | Sequence[str]
"""One text, or several that say the same."""
Reduce = Literal["max", "mean", "best"]
"""How several prompts answer one question; see `Encoder.zero_shot_features`."""
Prepare = Literal["wordpunct"]


def set_apart(text: str) -> str:
    """Return a text in small letters, its words and its runs of marks set apart by spaces, as Merlin was trained."""
    return " ".join(re.findall(r"\w+|[^\w\s]+", text.lower()))


PREPARE: dict[str, Callable[[str], str]] = {"wordpunct": set_apart}


@dataclass(frozen=True)
class TextSide:
    """The method, or the model of a released checkpoint, and the tokenizer that texts go through.

    `prepare` names what is done to a text before, see `PREPARE`.
    """

    method: Method | ReleasedModel
    tokenizer: Tokenizer
    max_tokens: int
    prepare: Prepare | None = None

    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """Return the features of texts, padded to the longest, on the device of the method.

        Raises:
            UserError: There are none.
        """
        written = as_texts(texts) if self.prepare is None else [PREPARE[self.prepare](text) for text in as_texts(texts)]
        ids, mask, word_ids = self.tokenizer.encode(written, self.max_tokens)
        batch = TextBatch(torch.from_numpy(ids), torch.from_numpy(mask), word_ids=torch.from_numpy(word_ids))
        if getattr(self.method, "uses_sentences", False):
            batch.sentence_ids = torch.from_numpy(self.tokenizer.sentence_ids(written, self.max_tokens))
        return self.method.encode_text(batch.to(next(self.method.parameters()).device))


def as_texts(texts: Prompts) -> list[str]:
    """Return one text or several as a list.

    Raises:
        UserError: There are none.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise UserError("There are no texts to encode.", "encoder", "Give one text or more.")
    return texts


def questions(texts: Sequence[Prompts], negatives: Sequence[Prompts] | None) -> tuple[list[list[str]], list[list[str]]]:
    """Return k lists of prompts and k lists of their opposites, by default "no " before every prompt.

    Raises:
        UserError: There is no question, a text has no prompt, or there are not as many negatives.
    """
    positives = [_prompts(text) for text in texts]
    opposites = (
        [[opposite(p) for p in ps] for ps in positives] if negatives is None else [_prompts(n) for n in negatives]
    )
    if not positives or len(opposites) != len(positives):
        raise UserError(
            f"{len(positives)} texts and {len(opposites)} negatives do not make questions.",
            "zero_shot",
            "Give one text or more, and as many negatives or none.",
        )
    return positives, opposites


def _prompts(text: Prompts) -> list[str]:
    prompts = [text] if isinstance(text, str) else list(text)
    if not prompts:
        raise UserError("A text to score has no prompt.", "zero_shot", "Give each text at least one prompt.")
    return prompts
