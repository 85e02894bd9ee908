"""The raw layout of the Montgomery set; see `data_cards/montgomery.md`."""

from __future__ import annotations

from medvlp.sources.phantom.examples import ExampleImage
from medvlp.sources.phantom.layouts._nlm_tb import NlmTuberculosisLayout
from medvlp.types import Mask


class MontgomeryLayout(NlmTuberculosisLayout):
    """Each lung has its mask."""

    folder, prefix = "MontgomerySet", "MCUCXR"

    def put_masks(self, name: str, image: ExampleImage) -> tuple[Mask, ...]:
        """Write one mask for each lung, by the patient's sides."""
        masks = []
        for side, folder, inside in zip(
            ("left lung", "right lung"), ("leftMask", "rightMask"), self.lungs(image), strict=True
        ):
            path = f"{self.folder}/ManualMask/{folder}/{name}.png"
            self.put_mask(path, inside)
            masks.append(Mask(name, side, path=path))
        return tuple(masks)
