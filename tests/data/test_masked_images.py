"""Masks keep together with their images through every change."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from medvlp.config.data import AugmentConfig
from medvlp.data.augment import ImageChanges, apply, apply_to_mask, draw
from medvlp.data.masked_images import MASKS, MaskLoader

PLAIN = {"brightness": 0.0, "contrast": 0.0}


def blob(size: int, number: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] + 0.5
    return (rows - size * (0.3 + 0.05 * number)) ** 2 + (columns - size * 0.6) ** 2 < (size * 0.2) ** 2


def under(mask: np.ndarray, changes: ImageChanges, i: int, side: int) -> np.ndarray:
    """Return what lies under the centre of every output pixel, found pixel by pixel; outside is 0."""
    angle = np.deg2rad(changes.degrees[i])
    size = np.array([changes.height[i], changes.width[i]])
    centre = np.array([changes.top[i], changes.left[i]]) + size / 2
    found = np.zeros((side, side), np.uint8)
    for row in range(side):
        for column in range(side):
            y, x = (np.array([row, side - 1 - column if changes.flip[i] else column]) + 0.5) / side - 0.5
            y, x = y * size[0], x * size[1]
            # Columns of the matrix are steps in the image per output column and row.
            turned = np.array([np.sin(angle) * x + np.cos(angle) * y, np.cos(angle) * x - np.sin(angle) * y])
            at = centre + turned
            if (at >= 0).all() and (at < len(mask)).all():
                found[row, column] = mask[int(at[0]), int(at[1])]
    return found


@pytest.mark.parametrize(
    "changes",
    [{}, {"flip": True}, {"rotate_degrees": 20.0}, {"rotate_degrees": 20.0, "flip": True, "crop_scale": (0.3, 0.5)}],
)
@pytest.mark.parametrize("size", [48, 200])
def test_a_mask_moves_as_its_image_does(changes: dict[str, object], size: int) -> None:
    drawn = draw(AugmentConfig.model_validate(PLAIN | changes), 7, 3, np.arange(6), size)
    for i in range(6):
        mask = blob(size, i % 4).astype(np.uint8)
        image, moved = np.zeros((64, 64), np.uint8), np.full((64, 64), 9, np.uint8)
        apply(mask * 255, drawn, i, image)
        apply_to_mask(mask, drawn, i, moved)
        allowed = 0 if not drawn.degrees[i] else 0.02 * moved.sum()  # OpenCV rounds turned places to 1/32 of a pixel
        assert (moved != under(mask, drawn, i, 64)).sum() <= allowed
        centres = [np.argwhere(each).mean(axis=0) for each in (image > 127, moved)]
        assert np.abs(centres[0] - centres[1]).max() < 0.3


class Squares:
    """A store of blobs; the mask of row i is where the image is bright."""

    images = pd.DataFrame({"index": np.arange(10), "image_id": [f"i{i}" for i in range(10)]})

    def read(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([blob(32, int(i) % 4) * np.uint8(255) for i in indices])


def test_batches_hold_masks_of_the_same_pixels() -> None:
    store = Squares()
    options = {"batch_size": 4, "input_size": 32, "seed": 1, "augment": AugmentConfig(flip=True, **PLAIN)}

    def masks(rows: np.ndarray) -> np.ndarray:
        bright = (store.read(rows) > 0).astype(np.uint8)
        return np.stack([bright, 1 - bright], axis=1)

    for workers in (0, 2):
        loader = MaskLoader(store, np.arange(10), masks=masks, num_workers=workers, **options)
        for batch in loader.epoch(5):
            found = batch.extra[MASKS].numpy()
            assert found.shape == (4, 2, 32, 32)
            bright = batch.pixels[:, 0].numpy() > 127
            assert np.mean(bright != (found[:, 0] != 0)) < 0.02
            assert np.mean(bright == (found[:, 1] != 0)) < 0.04
