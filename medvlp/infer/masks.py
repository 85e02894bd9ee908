"""Masks of a fine-tuned segmentation, on the pixels of each image's file.

Guarantee: a pixel of the file has the answer of the pixel of the stored square that it lies in; what the square does
not show is outside every mask, and told. A mask file is named by the row of the table, never by the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.errors import UserError
from medvlp.infer.images import Bad
from medvlp.io.stored import stored_transform
from medvlp.tasks._segmenter import predicted_masks

if TYPE_CHECKING:
    from jaxtyping import Bool

    from medvlp.config.preprocessing import StoredImageConfig
    from medvlp.infer.seen import Seen
    from medvlp.tasks._tuned import TunedModel

INSIDE = 255


class Masks:
    """Mask file and size of every label.

    Args:
        model: A segmentation.
        folder: Where the files go.
    """

    def __init__(self, model: TunedModel, folder: Path) -> None:
        self.model, self.folder = model, folder

    def __call__(self, seen: Sequence[tuple[str, Seen]], first: int) -> list[dict[str, Any] | Bad]:
        """See `medvlp.infer.predict.Answers`."""
        rows: list[dict[str, Any] | Bad] = []
        number = first
        for (name, image), masks in zip(seen, self._masks(seen), strict=True):
            if isinstance(masks, UserError):
                rows.append(Bad(name, masks.what, masks.fix))
            else:
                rows.append(self._row(image, masks, number))
                number += 1
        return rows

    def _masks(self, seen: Sequence[tuple[str, Seen]]) -> list[Bool[np.ndarray, "k s s"] | UserError]:
        model = self.model
        try:
            stored = np.stack([image.square for _, image in seen])
            taken, config = model.preprocessing.input, model.task.segmentation
            return list(predicted_masks(model.network, stored, taken, config, model.device))
        except UserError as error:  # one image must not end the work on the others
            return [error] if len(seen) == 1 else [found for one in seen for found in self._masks([one])]

    def _row(self, image: Seen, masks: Bool[np.ndarray, "k s s"], number: int) -> dict[str, Any]:
        import cv2

        row: dict[str, Any] = {}
        for k, (label, mask) in enumerate(zip(self.model.label_names, masks, strict=True)):
            own, whole = on_file(mask, *image.size, self.model.preprocessing.stored)
            name = f"{number:06d}-{k}.png"
            done, png = cv2.imencode(".png", own.astype(np.uint8) * INSIDE)
            if not done:
                raise ValueError("a mask cannot be written as PNG")
            (self.folder / name).write_bytes(png.tobytes())
            pixels = int(own.sum())
            spacing = image.spacing_mm
            row |= {f"mask:{label}": name, f"pixels:{label}": pixels}
            row[f"area_mm2:{label}"] = None if spacing is None else pixels * spacing[0] * spacing[1]
        if not whole:
            image.notes.append("the edge of the image was not seen")
        return row


def on_file(
    mask: Bool[np.ndarray, "s s"], height: int, width: int, config: StoredImageConfig
) -> tuple[Bool[np.ndarray, "h w"], bool]:
    """Return a mask of the stored square on the pixels of the file, and whether the square shows all of them."""
    scale_y, scale_x, offset_y, offset_x = stored_transform(height, width, config)
    side = mask.shape[0]
    rows = np.floor((np.arange(height) + 0.5) * scale_y + offset_y).astype(np.intp)
    columns = np.floor((np.arange(width) + 0.5) * scale_x + offset_x).astype(np.intp)
    seen = ((rows >= 0) & (rows < side))[:, None] & ((columns >= 0) & (columns < side))
    found = mask[np.clip(rows, 0, side - 1)][:, np.clip(columns, 0, side - 1)]
    return found & seen, bool(seen.all())
