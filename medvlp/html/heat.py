"""Heat maps over grey pictures.

Guarantee: where there is no evidence the picture is seen as it is; a colour is a value of the scale and nothing else.
The colours are those of matplotlib's inferno (CC0), whose lightness rises evenly, so that they can be told apart in
grey and by colour-blind readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

INFERNO = (
    (0, 0, 4),
    (11, 7, 36),
    (33, 12, 74),
    (61, 9, 101),
    (87, 16, 110),
    (113, 25, 110),
    (138, 34, 106),
    (163, 44, 97),
    (188, 55, 84),
    (210, 70, 68),
    (228, 90, 49),
    (241, 115, 29),
    (249, 142, 9),
    (252, 172, 17),
    (249, 203, 53),
    (242, 234, 105),
    (252, 255, 164),
)
"""Red, green and blue at 17 even steps."""
OPACITY = 0.65
"""Of the colour at the upper end of the scale; it falls to 0 at the lower end."""
UNSEEN = 0.35
"""Brightness of what the encoder does not see."""


def colours(shares: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n 3"]:
    """Return red, green and blue, 0 to 1, of shares of the scale."""
    table = np.array(INFERNO) / 255
    steps = np.linspace(0, 1, len(table))
    return np.stack([np.interp(shares, steps, channel) for channel in table.T], axis=-1)


def laid_over(
    grey: Float[np.ndarray, "h w"], heat: Float[np.ndarray, "h w"], low: float, high: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Return a radiograph with a heat map over it.

    Args:
        grey: 0 black to 1 white.
        heat: Evidence; NaN is drawn dark.
        low: Value of the lower end of the scale.
        high: Value of the upper end.
    """
    unseen = np.isnan(heat)
    span = high - low
    shares = np.clip(np.where(unseen, 0.0, heat - low) / span, 0, 1) if span > 0 else np.zeros(heat.shape)
    opacity = (OPACITY * shares)[..., None]
    mixed = (1 - opacity) * grey[..., None] + opacity * colours(shares)
    mixed[unseen] *= UNSEEN
    return np.rint(255 * np.clip(mixed, 0, 1)).astype(np.uint8)


def scale_of(maps: Sequence[Float[np.ndarray, "h w"]]) -> tuple[float, float]:
    """Return the ends of the scale of maps: it holds 0 and all their values."""
    values = [value for one in maps for value in (np.nanmin(one), np.nanmax(one))]
    return min(0.0, float(min(values))), max(0.0, float(max(values)))
