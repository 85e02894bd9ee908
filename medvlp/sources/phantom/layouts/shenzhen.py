"""The raw layout of the Shenzhen set; see `data_cards/shenzhen.md`."""

from __future__ import annotations

from medvlp.sources.phantom.examples import ExampleImage
from medvlp.sources.phantom.layouts._nlm_tb import NlmTuberculosisLayout
from medvlp.types import Mask


class ShenzhenLayout(NlmTuberculosisLayout):
    """One mask has both lungs; two images of three have one."""

    folder, prefix = "ChinaSet_AllFiles", "CHNCXR"

    def put_masks(self, name: str, image: ExampleImage) -> tuple[Mask, ...]:
        """Write one mask of both lungs, but not for every third image."""
        if int(name.split("_")[1]) % 3 == 0:
            return ()
        path = f"mask/{name}_mask.png"
        left, right = self.lungs(image)
        self.put_mask(path, left | right)
        return (Mask(name, "lungs", path=path),)
