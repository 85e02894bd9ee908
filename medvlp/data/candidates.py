"""Candidate texts of each sample: sentences of its own text, drawn anew each epoch.

Guarantee: which sentences are drawn is a function of (seed, epoch, sample); a text with fewer sentences gives some of
them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medvlp.data.counter import TEXT_CHOICE, uniforms
from medvlp.data.token_table import TokenTable
from medvlp.text.sides import swap_sides

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

    from medvlp.data.corpus import PairedTexts
    from medvlp.types import TextBatch


@dataclass(frozen=True)
class Candidates:
    """Sentences of all samples.

    Args:
        table: The tokenised sentences; where images may be mirrored, the second half are the first with sides swapped.
        paired: Which of them are those of each image.
        number: Sentences drawn for each sample.
    """

    table: TokenTable
    paired: PairedTexts
    number: int

    @classmethod
    def of(cls, paired: PairedTexts, like: TokenTable, number: int, mirrors: bool) -> Candidates:
        """Return candidates, tokenised as a table of texts is."""
        texts = [*paired.texts, *map(swap_sides, paired.texts)] if mirrors else paired.texts
        return cls(TokenTable(like.tokenizer, texts, like.max_tokens, sentences=like.sentences), paired, number)

    def draw(self, seed: int, epoch: int, rows: Int[np.ndarray, " b"], mirrored: Bool[np.ndarray, " b"]) -> TextBatch:
        """Return the sentences of samples, those of one sample after those of another."""
        drawn = uniforms(TEXT_CHOICE, seed, epoch, rows, 1 + self.number)[:, 1:]  # the first one draws the text
        chosen = self.paired.first[rows, None] + np.floor(drawn * self.paired.count[rows, None]).astype(np.int64)
        return self.table.batch((chosen + mirrored[:, None] * (len(self.table.texts) // 2)).ravel())
