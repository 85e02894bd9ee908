"""Numbers and masks of experts as words of a prompt.

Guarantee: the same numbers give the same words; sides are those of the picture, as a mask says nothing of the patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool

STEP = 10
"""Percent between two probabilities that a prompt tells apart: few words are learnt better than many."""
HEIGHTS, SIDES = ("upper", "middle", "lower"), ("left", "centre", "right")


def findings_in_words(names: Sequence[str], probabilities: Sequence[float]) -> str:
    """Return e.g. "Expert: Edema 80 percent, Effusion 10 percent."."""
    said = [
        f"{_plain(name)} {round(100 * value / STEP) * STEP} percent"
        for name, value in zip(names, probabilities, strict=True)
    ]
    return f"Expert: {', '.join(said)}."


def mask_in_words(name: str, mask: Bool[np.ndarray, "h w"]) -> str:
    """Return size and place of a structure, e.g. "Expert: Effusion covers 4 percent, lower left of the picture."."""
    if not mask.any():
        return f"Expert: no {_plain(name)}."
    share = max(1, round(100 * float(mask.mean())))
    rows, columns = np.nonzero(mask)
    height = HEIGHTS[min(2, int(3 * (rows.mean() + 0.5) / mask.shape[0]))]
    side = SIDES[min(2, int(3 * (columns.mean() + 0.5) / mask.shape[1]))]
    return f"Expert: {_plain(name)} covers {share} percent, {height} {side} of the picture."


def _plain(name: str) -> str:
    return name.replace("_", " ")
