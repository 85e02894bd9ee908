"""BLEU-1 to BLEU-4 from counts per sample.

Guarantee: BLEU of any set of samples follows from the sum of their counts, as Papineni et al. (ACL 2002) define it for
a corpus; it is no mean of the samples' own values. Matches are clipped at the reference that has most of an n-gram, the
reference length is that closest to the text, the shorter of two equally close ones. A small number in each ratio, as in
the COCO caption scorer, keeps BLEU above 0 where longer n-grams have no match (of the order of 1e-9 for one sentence).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from medvlp.metrics.report.pairs import LONGEST, TextPairs

if TYPE_CHECKING:
    from jaxtyping import Float

_TINY, _SMALL = 1e-15, 1e-9
"""What the COCO caption scorer adds to numerators and to denominators."""


def bleu_counts(pairs: TextPairs) -> Float[np.ndarray, "n 10"]:
    """Return per sample: clipped matches and n-grams of the text for n = 1 to 4, its words, words of the reference."""
    matches, guesses = [], []
    for generated, references in zip(*pairs.counts, strict=True):
        largest = _largest(references, pairs)
        matches.append(generated.minimum(largest).sum(axis=1))
        guesses.append(generated.sum(axis=1))
    words = guesses[0]
    distance = np.abs((lengths := pairs.counts[1][0].sum(axis=1)) - words[pairs.owner])
    order = np.lexsort((lengths, distance, pairs.owner))
    closest = lengths[order][np.unique(pairs.owner, return_index=True)[1]]
    return np.stack([*matches, *guesses, words, closest], axis=1)


def _largest(references: sparse.csr_array, pairs: TextPairs) -> sparse.csr_array:
    """Return for each sample how often the reference with most of it has each n-gram."""
    first = np.unique(pairs.owner, return_index=True)[1]
    place = np.arange(len(pairs.owner)) - first[pairs.owner]
    largest = references[first]
    for k in range(1, int(place.max(initial=0)) + 1):
        rows = pairs.of_sample.multiply((place == k)[None])
        largest = largest.maximum(rows.tocsr() @ references)
    return largest


def bleu(counts: Float[np.ndarray, "*set 10"]) -> Float[np.ndarray, "*set 4"]:
    """Return BLEU-1 to BLEU-4 of summed `bleu_counts`, or of those of single samples; NaN without samples.

    BLEU-n is the geometric mean of the precisions of 1 to n words, times exp(1 - r / c) where the text is shorter (c)
    than the reference (r).
    """
    matches, guesses = counts[..., :LONGEST], counts[..., LONGEST : 2 * LONGEST]
    precision = (matches + _TINY) / (guesses + _SMALL)
    ratio = (counts[..., -2] + _TINY) / (counts[..., -1] + _SMALL)
    brevity = np.exp(np.minimum(1 - 1 / ratio, 0.0))
    return np.cumprod(precision, axis=-1) ** (1 / np.arange(1, LONGEST + 1)) * brevity[..., None]
