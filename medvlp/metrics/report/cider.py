"""CIDEr and CIDEr-D: n-grams weighted by how rare they are among the references of the scored samples.

Guarantee: equals Vedantam et al. (CVPR 2015) as the COCO caption scorer computes it. The document frequencies belong to
the set that is scored: in a resample of patients they are counted anew, so that a value is what the scorer gives for
the repeated samples. A single sample, or samples whose references are all alike, score 0: no n-gram is rare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from medvlp.metrics.report.pairs import TextPairs

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SIGMA = 6.0
"""Standard deviation of CIDEr-D's length penalty, in words."""
_SETS = 16
"""Sets of weights handled at once."""


class CiderCounts:
    """What CIDEr is computed from, whatever the weights of the samples.

    Similarities are sums over n-grams of a count times the squared rarity. N-grams that no reference has, and those of
    the references of one sample only, share their rarity, and are added up beforehand.

    Args:
        pairs: Tokenised texts.
        clipped: CIDEr-D: a generated n-gram counts no more often than in the reference, and texts of other length are
            penalised. False: CIDEr, a plain cosine. Both are 10 for a text equal to its references.
    """

    def __init__(self, pairs: TextPairs, clipped: bool = True) -> None:
        self.owner, self.of_sample = pairs.owner, pairs.of_sample
        self.references = pairs.of_sample.sum(axis=1)
        words_generated, words_reference = (tables[0].sum(axis=1) for tables in pairs.counts)
        # The scorer counts bigrams: for two texts with words the difference is the same.
        length_gap = words_generated[self.owner] - words_reference
        self.penalty = np.exp(-(length_gap**2) / (2 * SIGMA**2)) if clipped else np.ones(len(self.owner))
        self.tables = [self._of_length(*tables, clipped) for tables in zip(*pairs.counts, strict=True)]

    def _of_length(
        self, generated: sparse.csr_array, references: sparse.csr_array, clipped: bool
    ) -> tuple[sparse.csr_array, sparse.csr_array, sparse.csr_array, sparse.csr_array]:
        """Return samples that have an n-gram in a reference `[n c]`, and counts times counts: own, reference, both."""
        present = (self.of_sample @ references.sign()).sign()
        samples, count = present.shape[0], present.count_nonzero(axis=0)
        column = np.full(len(count), samples, dtype=np.int64)  # that of n-grams without reference stays empty in `seen`
        single = present.multiply(count == 1).tocoo()
        column[single.coords[1]] = single.coords[0]
        shared = np.flatnonzero(count > 1)
        column[shared] = samples + 1 + np.arange(len(shared))
        joined = sparse.csr_array(
            (np.ones(len(column)), (np.arange(len(column)), column)), shape=(len(column), samples + 1 + len(shared))
        )
        seen = (present @ joined).sign()
        own = generated[self.owner]
        both = (own.minimum(references) if clipped else own).multiply(references)
        return (
            seen,
            generated.power(2) @ joined,
            references.power(2) @ joined,
            both.tocsr() @ joined,
        )

    def samples(self, weights: Int[np.ndarray, "r n"] | None = None) -> Float[np.ndarray, "r n"]:
        """Return the value of every sample among the samples that each row of weights repeats.

        Args:
            weights: How often each sample stands in each set; None: one set, each sample once.
        """
        if weights is None:
            weights = np.ones((1, len(self.references)), dtype=np.int64)
        blocks = [self._samples(weights[start : start + _SETS]) for start in range(0, len(weights), _SETS)]
        return np.concatenate(blocks) if blocks else np.zeros(weights.shape)

    def _samples(self, weights: Int[np.ndarray, "r n"]) -> Float[np.ndarray, "r n"]:
        total = np.zeros((len(self.owner), len(weights)))
        log_samples = np.log(np.maximum(weights.sum(axis=1), 1))
        for seen, own, reference, both in self.tables:
            frequency = np.maximum(seen.T @ weights.T.astype(np.float64), 1)
            squared_rarity = (log_samples - np.log(frequency)) ** 2
            norms = np.sqrt((own @ squared_rarity)[self.owner] * (reference @ squared_rarity))
            total += np.divide(both @ squared_rarity, norms, out=np.zeros_like(norms), where=norms > 0)
        similarity = self.of_sample @ (total * self.penalty[:, None])
        return (10 / len(self.tables) * similarity / self.references[:, None]).T

    def corpus(self, weights: Int[np.ndarray, "r n"] | None = None) -> Float[np.ndarray, " r"]:
        """Return CIDEr of each set: the mean of its samples' values; NaN for a set without samples."""
        if weights is None:
            weights = np.ones((1, len(self.references)), dtype=np.int64)
        with np.errstate(invalid="ignore"):
            return (self.samples(weights) * weights).sum(axis=1) / weights.sum(axis=1)
