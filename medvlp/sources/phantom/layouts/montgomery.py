"""The raw layout of the Montgomery set; see `data_cards/montgomery.md`."""

from __future__ import annotations

import numpy as np

from medvlp.sources.phantom.examples import ExampleImage
from medvlp.sources.phantom.layouts._nlm_tb import NlmTuberculosisLayout
from medvlp.types import Mask


class MontgomeryLayout(NlmTuberculosisLayout):
    """Lung masks are the right and the left third of the picture."""

    folder, prefix = "MontgomerySet", "MCUCXR"

    def put_masks(self, name: str, image: ExampleImage) -> tuple[Mask, ...]:
        """Write one mask for each lung; the patient's left is on the right of the picture."""
        third = image.pixels.shape[1] // 3
        left, right = np.zeros(image.pixels.shape, bool), np.zeros(image.pixels.shape, bool)
        left[:, -third:] = right[:, :third] = True
        masks = []
        for side, folder, inside in (("left lung", "leftMask", left), ("right lung", "rightMask", right)):
            path = f"{self.folder}/ManualMask/{folder}/{name}.png"
            self.put_mask(path, inside)
            masks.append(Mask(name, side, path=path))
        return tuple(masks)
