"""Numbers that are not finite are a failure, never a score.

Guarantee: features and predictions with NaN or infinity reach no cache, no probe and no table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medvlp.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


class NotFiniteError(UserError):
    """An encoder or a head gives numbers that are not finite."""


def check_finite(values: np.ndarray, what: str, where: str) -> None:
    """Refuse numbers that are not finite.

    Args:
        values: One row per image or sample.
        what: Name of the numbers, e.g. `features`.
        where: What gave them.

    Raises:
        NotFiniteError: Some are NaN or infinite.
    """
    bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if bad.any():
        raise NotFiniteError(
            f"The {what} of {int(bad.sum()):,} of {len(values):,} images are not finite (NaN or infinity).",
            where,
            "Check the weights and the preprocessing of the encoder; nothing was computed from such numbers.",
        )


def check_predictions(frame: pd.DataFrame, where: str) -> None:
    """Refuse kept predictions whose scores, maps or vectors are not finite: ranked, they would look like numbers.

    Args:
        frame: As `Kept.to_frame` gives it.
        where: What gave them.

    Raises:
        NotFiniteError: Some are NaN or infinite.
    """
    for name in map(str, frame.columns):
        column = frame[name]
        if name.startswith("score:"):
            check_finite(column.to_numpy(dtype=np.float64), "predictions", where)
        elif len(column) and isinstance(column.iloc[0], np.ndarray) and column.iloc[0].dtype.kind == "f":
            finite = [bool(np.isfinite(values).all()) for values in column]
            check_finite(np.where(finite, 0.0, np.nan), "predictions", where)
