"""Numbers and masks of experts as words of a prompt.

Guarantee: the same numbers give the same words. Sides of an image are those of the picture, as its mask says nothing of
the patient; those of a volume with geometry are the patient's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

    from medvlp.types import Volume

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
    rows, columns = np.nonzero(mask)
    height, side = _third(rows, mask.shape[0], HEIGHTS), _third(columns, mask.shape[1], SIDES)
    return f"Expert: {_plain(name)} covers {_share(mask)} percent, {height} {side} of the picture."


def structure_in_words(name: str, mask: Bool[np.ndarray, "d h w"], volume: Volume) -> str:
    """Return size and place of a structure of a volume, e.g. "Expert: liver 2000 ml, lower right of the volume.".

    The size has one digit that counts. A volume without geometry has no millilitres and no sides: then it is
    "Expert: liver covers 4 percent of the volume.".
    """
    if not mask.any():
        return f"Expert: no {_plain(name)}."
    if volume.affine is None or volume.spacing_mm is None:
        return f"Expert: {_plain(name)} covers {_share(mask)} percent of the volume."
    size = float(mask.sum() * np.prod(volume.spacing_mm)) / 1000
    millilitres = "less than 1" if size < 1 else f"{float(f'{size:.0e}'):.0f}"
    slices, _, columns = np.nonzero(mask)
    height, side = _third(slices, mask.shape[0], HEIGHTS[::-1]), _third(columns, mask.shape[2], SIDES)
    return f"Expert: {_plain(name)} {millilitres} ml, {height} {side} of the volume."


def _share(mask: Bool[np.ndarray, "*s"]) -> int:
    return max(1, round(100 * float(mask.mean())))


def _third(places: Int[np.ndarray, " n"], length: int, names: Sequence[str]) -> str:
    """Return which third of an axis the middle of some places lies in."""
    return names[min(2, int(3 * (places.mean() + 0.5) / length))]


def _plain(name: str) -> str:
    return name.replace("_", " ")
