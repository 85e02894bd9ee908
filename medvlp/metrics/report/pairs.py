"""Generated texts with their references, and the n-grams of all of them.

Guarantee: a text is what a tokeniser left of it; words are what blanks separate. Counting is done once for all metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from jaxtyping import Int

LONGEST = 4
"""n-grams of 1 to this many words are counted."""


@dataclass(frozen=True)
class TextPairs:
    """One tokenised text per sample, and one or more tokenised references.

    Raises:
        ValueError: Not one list of references per text, or a list without any.
    """

    generated: Sequence[str]
    references: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        if len(self.generated) != len(self.references):
            raise ValueError(f"{len(self.generated)} texts, but references of {len(self.references)}")
        if any(isinstance(texts, str) or not len(texts) for texts in self.references):
            raise ValueError("each text needs a list of at least one reference")

    def __len__(self) -> int:
        return len(self.generated)

    @cached_property
    def reference_texts(self) -> list[str]:
        """All references, sample by sample."""
        return [text for texts in self.references for text in texts]

    @cached_property
    def owner(self) -> Int[np.ndarray, " m"]:
        """Sample of each of `reference_texts`."""
        return np.repeat(np.arange(len(self)), [len(texts) for texts in self.references])

    @cached_property
    def counts(self) -> tuple[list[sparse.csr_array], list[sparse.csr_array]]:
        """How often each n-gram stands in each generated text `[n g]` and in each reference `[m g]`, for n = 1 to 4."""
        both = count_ngrams([text.split() for text in (*self.generated, *self.reference_texts)])
        return [table[: len(self)] for table in both], [table[len(self) :] for table in both]

    @cached_property
    def of_sample(self) -> sparse.csr_array:
        """Which references belong to which sample, `[n m]`: from the left it adds up what references have."""
        m = len(self.owner)
        return sparse.csr_array((np.ones(m), (self.owner, np.arange(m))), shape=(len(self), m))


def count_ngrams(texts: Sequence[Sequence[str]], longest: int = LONGEST) -> list[sparse.csr_array]:
    """Return for n = 1 to `longest` how often each n-gram stands in each text; columns are the n-grams that occur."""
    lengths = np.array([len(words) for words in texts], dtype=np.int64)
    text = np.repeat(np.arange(len(texts)), lengths)
    words_left = np.repeat(lengths.cumsum(), lengths) - np.arange(len(text))
    vocabulary: dict[str, int] = {}
    word = np.array([vocabulary.setdefault(w, len(vocabulary)) for words in texts for w in words], dtype=np.int64)
    tables, gram = [], np.zeros_like(word)
    for n in range(1, longest + 1):
        starts = np.flatnonzero(words_left >= n)
        known, column = np.unique(gram[starts] * max(len(vocabulary), 1) + word[starts + n - 1], return_inverse=True)
        gram[starts] = column
        tables.append(sparse.csr_array((np.ones(len(starts)), (text[starts], column)), shape=(len(texts), len(known))))
    return tables
