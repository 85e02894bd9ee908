"""Decoded images of a store, kept for all cells of a process where they fit.

Guarantee: the images are those of the store, bit by bit, and a caller gets a copy. A store that is larger than its
share of the free memory is read as it is.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.store.array_store import Store

if TYPE_CHECKING:
    from jaxtyping import Int, Shaped

MEMORY_SHARE = 0.1
"""Of the memory that is free when the first image is read."""


class SharedReads(Store):
    """A store whose images are decoded once in a process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedReads, super().__reduce__()[1]

    def read(self, indices: Int[np.ndarray, " b"]) -> Shaped[np.ndarray, "b h w *c"]:
        """Return images by their array row; see `Store.read`."""
        if self._kept is None:
            return super().read(indices)
        pixels, known = self._kept
        wanted = self._rows(indices, len(known), str(self.path))
        missing = np.unique(wanted[~known[wanted]])
        if len(missing):
            pixels[missing] = super().read(missing)
            known[missing] = True
        return pixels[wanted]

    @cached_property
    def _kept(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Room for all images, and which are there; None where they do not fit, or the store holds no images."""
        import psutil

        if self.kind != "image":
            return None
        one = super().read(np.zeros(0, dtype=np.int64))
        rows = int(self.meta["counts"]["array_rows"])
        size = rows * one.itemsize * int(np.prod(one.shape[1:]))
        if size > MEMORY_SHARE * psutil.virtual_memory().available:
            return None
        return np.empty((rows, *one.shape[1:]), dtype=one.dtype), np.zeros(rows, dtype=bool)
