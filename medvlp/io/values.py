"""Stored voxel values -> int16 with a named meaning.

Guarantee: slope and intercept are applied once, and it is recorded that they were; a value is never rounded, clipped or
replaced without a count in the record, and what int16 cannot hold in a meaningful way is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.types import Intensity

if TYPE_CHECKING:
    from jaxtyping import Bool, Int16, Shaped

AIR_HU = -1024
PADDING_HU = (-2000, -3024)
"""Values outside of the scanned field that no tissue has; scanners write them as stored or as HU."""
HIGHEST_PADDING_HU = -900
"""A declared padding value at or above this could be tissue, and is left alone, unless int16 cannot even hold it: -2000
among unsigned values reads as 63536, and would become the brightest of all."""
WHOLE = 1e-3
"""Distance from a whole number up to which a float counts as one."""
COARSEST_LOSS = 0.5
"""Smallest factor by which STORED integers are rescaled and rounded; below, neighbouring values would merge."""
_LOW, _HIGH = np.iinfo(np.int16).min, np.iinfo(np.int16).max


def is_padding(hu: Int16[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
    """Return where HU are a value of `PADDING_HU`."""
    return (hu == PADDING_HU[0]) | (hu == PADDING_HU[1])


class BadValues(ValueError):
    """The numbers of a file do not fit; `fix` is the next step."""

    def __init__(self, what: str, fix: str) -> None:
        self.fix = fix
        super().__init__(what)


@dataclass
class Converter:
    """Turns chunks of stored values into int16 and counts what it changes.

    Args:
        intensity: What the values mean once `slope` and `intercept` are applied.
        slope: Factor.
        intercept: Offset.
        padding: Lowest and highest stored value that mean "outside of the scanned field", where the file says so.
        may_round: Whether STORED fractions are rounded: the data set names a scale on which whole numbers suffice.
    """

    intensity: Intensity
    slope: float = 1.0
    intercept: float = 0.0
    padding: tuple[int, int] | None = None
    may_round: bool = False
    counts: dict[str, int] = field(default_factory=lambda: {"padding_voxels": 0, "clipped_voxels": 0})
    rounded: bool = False

    def convert(self, stored: Shaped[np.ndarray, "..."]) -> Int16[np.ndarray, "..."]:
        """Return the values of one chunk; the memory of a 16-bit `stored` is used for the result.

        Raises:
            BadValues: NaN or infinity; STORED values that are no whole numbers or beyond int16.
        """
        low, high = (stored.min(), stored.max()) if stored.size else (0, 0)
        padded = self._padded(stored, low)
        if stored.dtype.kind in "iu" and self._shifts_only(stored.dtype, int(low), int(high)):
            out = stored.view(np.int16) if stored.dtype.itemsize == 2 else np.empty(stored.shape, dtype=np.int16)
            np.add(stored, int(self.intercept), out=out, dtype=np.int16, casting="unsafe")
        else:
            out = self._scaled(stored, padded)
        self._air(padded, out)
        return out

    def _shifts_only(self, dtype: np.dtype, low: int, high: int) -> bool:
        """Tell whether the chunk's values stay within int16 by an addition alone."""
        if self.slope != 1 or self.intercept != int(self.intercept) or not dtype.isnative:
            return False
        return bool(low + self.intercept >= _LOW and high + self.intercept <= _HIGH and abs(self.intercept) <= _HIGH)

    def _scaled(self, stored: np.ndarray, padded: np.ndarray | None) -> Int16[np.ndarray, "..."]:
        values = stored.astype(np.float64)
        if stored.dtype.kind == "f" and not np.isfinite(values).all():
            raise BadValues(
                "Some voxels are NaN or infinite.", "Replace them in the file: what belongs there is unknown."
            )
        if self.slope != 1:
            values *= self.slope
        if self.intercept:
            values += self.intercept
        whole = np.rint(values)
        self._check_rounding(stored, values, whole)
        outside = (whole < _LOW) | (whole > _HIGH)
        if padded is not None:
            outside &= ~padded
        beyond = int(np.count_nonzero(outside))
        if beyond and self.intensity is not Intensity.HU:
            raise BadValues(
                f"{beyond} voxels in one part lie outside of -32768 to 32767, which a stored volume can hold.",
                "Convert the file to int16, or name its values HU if they are.",
            )
        self.counts["clipped_voxels"] += beyond
        return np.clip(whole, _LOW, _HIGH, out=whole).astype(np.int16)

    def _check_rounding(self, stored: np.ndarray, values: np.ndarray, whole: np.ndarray) -> None:
        if np.array_equal(values, whole):
            return
        if self.intensity is not Intensity.HU and not self.may_round:
            if stored.dtype.kind == "f" and np.abs(values - whole).max() > WHOLE:
                raise BadValues(
                    "The file holds fractions, and nothing says that they are HU.",
                    "Set volume.intensity to hu if they are, or convert the file to whole numbers.",
                )
            if stored.dtype.kind != "f" and abs(self.slope) < COARSEST_LOSS:
                raise BadValues(
                    f"Whole numbers would be scaled by {self.slope:.6g} and merge when they are rounded.",
                    "Convert the file to int16 without scaling.",
                )
        self.rounded = True

    def _padded(self, stored: np.ndarray, lowest: Any) -> np.ndarray | None:
        """Return where the file's own padding values are, if there are any and they cannot be tissue."""
        if self.padding is None or self.intensity is not Intensity.HU:
            return None
        ends = [value * self.slope + self.intercept for value in self.padding]
        if max(ends) >= HIGHEST_PADDING_HU and min(ends) <= _HIGH:
            return None
        low, high = self.padding
        if lowest > high:
            return None
        found = stored == low if low == high else (stored >= low) & (stored <= high)
        return found if found.any() else None

    def _air(self, padded: np.ndarray | None, out: np.ndarray) -> None:
        if self.intensity is not Intensity.HU:
            return
        if out.min(initial=0) <= max(PADDING_HU):
            unlabelled = is_padding(out)
            padded = unlabelled if padded is None else padded | unlabelled
        if padded is not None:
            self.counts["padding_voxels"] += int(np.count_nonzero(padded))
            out[padded] = AIR_HU

    @property
    def record(self) -> dict[str, Any]:
        """What was done, for provenance."""
        declared = None if self.padding is None else list(self.padding)
        return {"padding_declared": declared, "rounded": self.rounded, **self.counts}
