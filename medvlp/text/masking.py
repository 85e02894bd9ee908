"""Which tokens are masked for masked language modelling: whole words, or whole entities (M3AE, ARL).

Guarantee: the tokens of a word, or of an entity, are masked together or not at all; special tokens and pads never. The
choice is a function of the generator given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int


def units(word_ids: Int[np.ndarray, " l"], spans: Sequence[tuple[int, int]] = ()) -> Int[np.ndarray, " l"]:
    """Return the number of each token's unit, -1 at special tokens and pads.

    Args:
        word_ids: Word of each token, -1 at special tokens and pads, as `Tokenizer.encode` gives them.
        spans: Tokens (first, last + 1) of entities: their words become one unit; spans that overlap become one.
    """
    merged = word_ids.astype(np.int64, copy=True)
    for first, last in spans:
        words = np.unique(merged[first:last][merged[first:last] >= 0])
        if len(words):
            merged[np.isin(merged, words)] = words[0]
    found, numbers = np.unique(merged, return_inverse=True)
    return numbers - int(found[0] == -1) if len(found) else merged


def whole_unit_mask(
    word_ids: Int[np.ndarray, " l"],
    rng: np.random.Generator,
    share: float = 0.15,
    spans: Sequence[tuple[int, int]] = (),
) -> Bool[np.ndarray, " l"]:
    """Return which tokens are masked: whole units in random order until `share` of the tokens of words is reached.

    At least one unit is masked where there is a word and `share` is above 0; the share is passed by at most one unit.

    Args:
        word_ids: As in `units`.
        rng: Source of randomness.
        share: Share of the tokens of words, 0 to 1.
        spans: Entities, as in `units`.
    """
    numbers = units(word_ids, spans)
    mask = np.zeros(len(numbers), dtype=bool)
    wanted = share * int((numbers >= 0).sum())
    for unit in rng.permutation(int(numbers.max(initial=-1)) + 1):
        if mask.sum() >= wanted:
            break
        mask |= numbers == unit
    return mask
