"""ROUGE-L per sample.

Guarantee: equals the longest-common-subsequence F of Lin (ACL workshop 2004) as the COCO caption scorer computes it;
exact, whatever the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from medvlp.metrics.report.pairs import TextPairs

if TYPE_CHECKING:
    from jaxtyping import Float

BETA = 1.2
"""Weight of recall, that of the COCO caption scorer."""


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, one row of the table as the bits of a number.

    Hyyrö, Bit-parallel LCS-length computation revisited (2004).
    """
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    everything = (1 << len(a)) - 1
    row = everything
    for word in b:
        found = row & places.get(word, 0)
        row = (row + found | row - found) & everything
    return len(a) - row.bit_count()


def rouge_l(pairs: TextPairs) -> Float[np.ndarray, " n"]:
    """Return F = (1 + b²) P R / (R + b² P) of each sample with b = 1.2; ROUGE-L of a set is the mean.

    With several references P and R are the largest of each, which may come from different ones. Texts are split at
    single blanks: an empty text is one empty word, so that it equals an empty reference and no other.
    """
    values = np.zeros(len(pairs))
    for sample, (generated, references) in enumerate(zip(pairs.generated, pairs.references, strict=True)):
        words = generated.split(" ")
        others = [reference.split(" ") for reference in references]
        common = [common_subsequence(words, other) for other in others]
        if max(common):
            precision = max(common) / len(words)
            recall = max(count / len(other) for count, other in zip(common, others, strict=True))
            values[sample] = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
    return values
