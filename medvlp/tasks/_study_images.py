"""All images of a study together: which they are, batches of them, and visual tokens that are computed once.

Guarantee: the images of a study are the first ones of the task's views by their ids. Kept tokens are those that the
tower gives for the image, unchanged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medvlp.data.inputs import InputLoader
from medvlp.models.report_decoder import Visual
from medvlp.types import Batch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Int

    from medvlp.data.loader import PixelStore
    from medvlp.store.array_store import Store

REAL = "real"
"""Key of a batch's extras: which of the places for a study's images are taken, `[b v]`."""


class StudyImages:
    """The images of every study.

    Args:
        store: A store; its images have ids, studies and views.
        views: Views used; empty uses all.
        most: Images of a study at most.
    """

    def __init__(self, store: PixelStore, views: Sequence[str], most: int) -> None:
        images = store.images.assign(row=np.arange(len(store.images)))
        if views:
            images = images[images["view"].isin(views)]
        images = images.sort_values("image_id", kind="stable")
        groups = images.groupby("study_id")["row"]
        self._of_first = {int(rows.iloc[0]): rows.to_numpy()[:most] for _, rows in groups}
        self.most = most

    @property
    def first(self) -> Int[np.ndarray, " s"]:
        """First image of each study, as row of the images table."""
        return np.array(list(self._of_first), dtype=np.int64)

    def of(self, first: Int[np.ndarray, " b"]) -> Int[np.ndarray, "b v"]:
        """Return all images of studies, given by their first ones; -1 fills up."""
        found = np.full((len(first), self.most), -1, dtype=np.int64)
        for line, row in zip(found, first.tolist(), strict=True):
            rows = self._of_first[row]
            line[: len(rows)] = rows
        return found


class StudyLoader(InputLoader):
    """Batches of studies by their first images; `pixels` are those of all their images, one after the other.

    Args:
        store: The prepared store.
        rows: First image of each study.
        images: The images of studies.
        with_pixels: False makes batches whose pixels are empty.
        **options: As for `InputLoader`.
    """

    def __init__(
        self,
        store: Store,
        rows: Int[np.ndarray, " n"],
        *,
        images: StudyImages,
        with_pixels: bool,
        **options: Any,
    ) -> None:
        super().__init__(store, rows, **options)
        self.images, self.with_pixels = images, with_pixels

    def load(self, epoch: int, step: int, rows: Int[np.ndarray, " b"]) -> Batch:
        """Make one batch; called from worker threads."""
        shown = self.images.of(rows)
        real = shown >= 0
        each = shown[real]
        extra = {REAL: torch.from_numpy(real)}
        pixels = torch.zeros((0, 1, 1, 1), dtype=torch.uint8)
        if self.with_pixels:
            pixels, changes = self.seen(epoch, each, each)
            extra |= changes
        return Batch(index=torch.from_numpy(rows.copy()), pixels=pixels, extra=extra)


def joined(tokens: Float[torch.Tensor, "m p d"], real: Bool[torch.Tensor, "b v"]) -> Visual:
    """Return the tokens of all images of each study, one image after the other, from those of the real images."""
    if real.all():
        return Visual(tokens.reshape(len(real), -1, tokens.shape[2]))
    places = tokens.new_zeros(*real.shape, *tokens.shape[1:])
    places[real] = tokens
    return Visual(places.flatten(1, 2), real.repeat_interleave(tokens.shape[1], dim=1))


class TokenCache:
    """Tokens of images that do not change, computed when they are first asked for and kept in a temporary file.

    Args:
        images: Rows of the images table.
        shape: Tokens of one image, `(p, d)`.
        make: From rows to tokens.
    """

    def __init__(
        self, images: int, shape: tuple[int, int], make: Callable[[Int[np.ndarray, " m"]], Float32[np.ndarray, "m p d"]]
    ) -> None:
        self._make = make
        self._folder = tempfile.TemporaryDirectory(prefix="medvlp-tokens-")
        # The file is as long as all images would need; what was never written takes no room on the disk.
        self._tokens = np.memmap(Path(self._folder.name) / "tokens", np.float32, "w+", shape=(images, *shape))
        self._known = np.zeros(images, dtype=bool)

    def __call__(self, rows: Int[np.ndarray, " m"]) -> Float32[np.ndarray, "m p d"]:
        """Return the tokens of images, in this order."""
        missing = np.unique(rows[~self._known[rows]])
        if len(missing):
            self._tokens[missing] = self._make(missing)
            self._known[missing] = True
        return np.array(self._tokens[rows])
